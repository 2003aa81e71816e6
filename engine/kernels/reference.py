"""The paged cache in torch: how keys and values are stored, read back and attended to.

This is the specification of every kernel and the path taken on CPUs. All reads go through the stored (quantised)
pages, also inside a prefill chunk, so what is measured is what is served.

Shapes: B sequences, Q query rows each, H query heads, KV key/value heads, D head size, L = pages * block_size keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.hadamard import rotation
from engine.layers.attention import AttentionGroup
from engine.memory import SCALED

STORAGE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8_e4m3": torch.uint8,
    "int8": torch.int8,
    "int4": torch.uint8,
}
LARGEST = {"fp8_e4m3": 448.0, "int8": 127.0, "int4": 7.5}
"""Largest magnitude of a code. int4 has 16 levels, -7.5, -6.5 ... 7.5: symmetric, since rotated keys and values are; a
zero point would lower the error by some 7 % and cost a term in every score."""


@dataclass(frozen=True, slots=True)
class PagedTensor:
    """Keys or values of one layer. data: [pages, block_size, KV, D] in the storage dtype (fp8 as its bytes).

    scales: [pages, block_size, KV] float32 for int8, int4 and fp8_e4m3 (absmax / largest code, symmetric), else None.
    int4 is stored rotated, [pages, block_size, KV, D / 2]: the first half of the channels in the low four bits.
    """

    dtype: str
    data: Tensor
    scales: Tensor | None

    @staticmethod
    def empty(dtype: str, pages: int, block_size: int, heads: int, head_dim: int, device: torch.device) -> PagedTensor:
        # Zeros, not garbage: a masked key is multiplied by 0, and 0 * NaN would spread.
        shape = (pages, block_size, heads)
        scales = torch.zeros(shape, device=device) if dtype in SCALED else None
        data = torch.zeros(
            (*shape, head_dim // 2 if dtype == "int4" else head_dim), dtype=STORAGE_DTYPES[dtype], device=device
        )
        return PagedTensor(dtype, data, scales)


def store(paged: PagedTensor, slots: Tensor, x: Tensor) -> None:
    """Write x [T, KV, D] to slots [T], quantising per token and head where the dtype asks for it."""
    flat = paged.data.view(-1, *paged.data.shape[2:])
    if paged.scales is None:
        flat.index_copy_(0, slots, x.to(flat.dtype))
        return
    x = _rotate(x) if paged.dtype == "int4" else x.float()
    scale = x.abs().amax(-1).clamp_min_(1e-12).div_(LARGEST[paged.dtype])
    flat.index_copy_(0, slots, _encode(x / scale.unsqueeze(-1), paged.dtype))
    paged.scales.view(-1, paged.scales.shape[2]).index_copy_(0, slots, scale)


def load(paged: PagedTensor, pages: Tensor, dtype: torch.dtype) -> Tensor:
    """Pages [N] as [N, block_size, KV, D] in `dtype`; int4 as it is stored, rotated."""
    # Flat pages are copied whole; with more than two dimensions index_select sets up an iterator for each.
    data = paged.data.flatten(1).index_select(0, pages).view(len(pages), *paged.data.shape[1:])
    if paged.scales is None:
        return data.to(dtype)
    return (_decode(data, paged.dtype) * paged.scales.index_select(0, pages).unsqueeze(-1)).to(dtype)


def _encode(x: Tensor, dtype: str) -> Tensor:
    """x, scaled to the range of the codes, as stored."""
    if dtype == "int8":
        return x.round_().to(torch.int8)
    if dtype == "fp8_e4m3":
        return x.to(torch.float8_e4m3fn).view(torch.uint8)
    low, high = x.add_(7.5).round_().clamp_(0, 15).to(torch.uint8).chunk(2, -1)
    return low | (high << 4)


def _decode(data: Tensor, dtype: str) -> Tensor:
    """Stored codes as float32, before the scale."""
    if dtype == "int8":
        return data.float()
    if dtype == "fp8_e4m3":
        # Five times faster on a CPU than torch's own cast from float8.
        return _fp8_values(data.device).index_select(0, data.view(-1).int()).view(data.shape)
    return torch.cat((data & 15, data >> 4), -1).float().sub_(7.5)


def _rotate(x: Tensor) -> Tensor:
    return x.float() @ rotation(x.shape[-1], x.device)


def paged_attention(
    query: Tensor, keys: PagedTensor, values: PagedTensor, groups: list[AttentionGroup], scale: float
) -> Tensor:
    """Attention of query rows [T, H, D] over the stored pages of their sequences; returns [T, H, D]."""
    if keys.dtype == "int4":
        # Scores of rotated queries and keys are those of the originals; that of the values is undone at the end.
        query = _rotate(query).to(query.dtype)
    outputs = []
    for group in groups:
        size, rows = group.num_sequences, group.rows
        q = query[group.first_row : group.first_row + size * rows].view(size, rows, *query.shape[1:])
        k = load(keys, group.pages, query.dtype).view(size, -1, keys.data.shape[2], query.shape[2])
        v = load(values, group.pages, query.dtype).view(size, -1, keys.data.shape[2], query.shape[2])
        out = _attend(q, k, v, group, scale) if group.masses is None else _attend_and_weigh(q, k, v, group, scale)
        outputs.append(out.reshape(size * rows, *query.shape[1:]))
    attended = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if values.dtype == "int4":
        attended = (attended.float() @ rotation(query.shape[2], query.device).T).to(query.dtype)
    return attended


def _attend(q: Tensor, k: Tensor, v: Tensor, group: AttentionGroup, scale: float) -> Tensor:
    """q: [B, Q, H, D]; k, v: [B, L, KV, D]. Returns [B, Q, H, D]."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=group.mask.to(q.dtype),
        scale=scale,
        enable_gqa=True,
    )
    return out.transpose(1, 2)


def _attend_and_weigh(q: Tensor, k: Tensor, v: Tensor, group: AttentionGroup, scale: float) -> Tensor:
    """The same, with the weights at hand: adds to group.masses what each page drew from all queries and heads."""
    assert group.masses is not None
    shared = q.view(*q.shape[:2], k.shape[2], -1, q.shape[3])  # H as KV groups of query heads
    scores = torch.einsum("bqkgd,blkd->bkgql", shared, k).float() * scale + group.mask.unsqueeze(1)
    weights = scores.softmax(-1)
    group.masses.add_(weights.sum((1, 2, 3)).view(*group.masses.shape, -1).sum(-1))
    return torch.einsum("bkgql,blkd->bqkgd", weights.to(v.dtype), v).reshape(q.shape)


_FP8_TABLES: dict[torch.device, Tensor] = {}


def _fp8_values(device: torch.device) -> Tensor:
    """The 256 values of e4m3 by code."""
    if device not in _FP8_TABLES:
        codes = torch.arange(256, dtype=torch.uint8)
        _FP8_TABLES[device] = codes.view(torch.float8_e4m3fn).float().to(device)
    return _FP8_TABLES[device]
