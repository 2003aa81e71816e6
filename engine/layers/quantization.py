"""Weights in 8 or 4 bits: what is stored, how it is made from a dense matrix, and what it means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED_PRODUCT_ROWS = 8
"""Up to so many rows torch's packed int8 product beats dequantising first: bfloat16 on a CPU with AVX512, 2.6 times
faster than a dense product at one row. In float32 it is always slower."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A matrix [out, in] as scale * (code - zero), with one scale (and zero) for each row and group of inputs.

    codes: int8 [out, in]; for 4 bits uint8 [out, in / 2], where a byte holds column i of its group in the low half and
    column i + group / 2 in the high half. scales: float32 [out, groups]. zeros: int8 [out, groups], or None where all
    are 0 (8 bits) or 8 (4 bits: codes are 0 ... 15). order: int32 [in], the input that each column multiplies, or None
    where they come in order.
    """

    bits: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    order: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All that is kept in memory."""
        return [t for t in (self.codes, self.scales, self.zeros, self.order) if t is not None]

    def to(self, device: torch.device) -> QuantizedWeight:
        codes, scales = self.codes.to(device), self.scales.to(device)
        zeros, order = (None if t is None else t.to(device) for t in (self.zeros, self.order))
        return QuantizedWeight(self.bits, codes, scales, zeros, order)

    def fuses_with(self, other: QuantizedWeight) -> bool:
        """Whether rows of the two can stand under each other in one matrix."""
        if self.order is None or other.order is None:
            same_order = self.order is other.order
        else:
            same_order = torch.equal(self.order, other.order)
        same_groups = self.scales.shape[1] == other.scales.shape[1]
        return same_order and same_groups and self.bits == other.bits and (self.zeros is None) == (other.zeros is None)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The matrix that the codes mean, [out, in], its columns in stored order."""
        rows, groups = self.scales.shape
        codes = self.codes.view(rows, groups, -1)
        if self.bits == 4:
            # Whole numbers of one byte until the end: a quarter of the memory traffic.
            codes = torch.cat((codes & 15, codes >> 4), -1).view(torch.int8)
            codes -= 8 if self.zeros is None else self.zeros.unsqueeze(-1)
            wide = codes.to(dtype)
        else:
            wide = codes.to(dtype) if self.zeros is None else codes.to(dtype) - self.zeros.to(dtype).unsqueeze(-1)
        return wide.mul_(self.scales.to(dtype).unsqueeze(-1)).view(rows, -1)

    def product(self, x: Tensor) -> Tensor:
        """x @ matrix.T for x [T, in]."""
        if self.order is not None:
            x = x.index_select(-1, self.order)
        scale_last = self.bits == 8 and self.zeros is None and self.scales.shape[1] == 1
        if not scale_last or x.dtype == torch.float16:  # sums of unscaled codes leave float16's range
            return F.linear(x, self.matrix(x.dtype))
        if x.dtype == torch.bfloat16 and x.shape[0] <= PACKED_PRODUCT_ROWS and x.device.type == "cpu":
            return torch._weight_int8pack_mm(x, self.codes, self.scales.view(-1).to(x.dtype))
        return F.linear(x, self.codes.to(x.dtype)) * self.scales.view(-1).to(x.dtype)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix with its columns in the inputs' order."""
        matrix = self.matrix(dtype)
        return matrix if self.order is None else matrix[:, torch.argsort(self.order)]


def pack(
    bits: int, codes: Tensor, scales: Tensor, zeros: Tensor | None, order: Tensor | None = None
) -> QuantizedWeight:
    """From codes [out, in] and zeros [out, groups] as unsigned numbers below 2^bits; zeros None: half of that."""
    rows, groups = scales.shape
    middle = 1 << (bits - 1)
    if zeros is not None and bool((zeros == middle).all()):
        zeros = None
    if bits == 4:
        low, high = codes.to(torch.uint8).reshape(rows, groups, 2, -1).unbind(2)
        stored = (low | high << 4).reshape(rows, -1)
        stored_zeros = None if zeros is None else zeros.to(torch.int8)
    else:
        stored = (codes - middle).to(torch.int8)
        stored_zeros = None if zeros is None else (zeros - middle).to(torch.int8)
    return QuantizedWeight(bits, stored, scales.float().contiguous(), stored_zeros, order)


def quantize_int8(weight: Tensor) -> QuantizedWeight:
    """Symmetric with one scale for each output: code = round(w / scale), scale = max |w| / 127."""
    scales = weight.float().abs().amax(1, keepdim=True).clamp_min_(1e-12) / 127
    return QuantizedWeight(8, torch.round(weight.float() / scales).to(torch.int8), scales)


def quantize_int4(weight: Tensor, group_size: int) -> QuantizedWeight:
    """With zero points, by groups along the inputs: codes 0 ... 15 spread over [min(w, 0), max(w, 0)] of the group."""
    groups = weight.float().view(weight.shape[0], -1, group_size)
    low, high = groups.amin(-1).clamp_max_(0), groups.amax(-1).clamp_min_(0)
    scales = ((high - low) / 15).clamp_min_(1e-12)
    zeros = torch.round(-low / scales)
    codes = torch.round(groups / scales.unsqueeze(-1) + zeros.unsqueeze(-1)).clamp_(0, 15)
    return pack(4, codes.view(weight.shape), scales, zeros)
