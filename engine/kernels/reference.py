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

from engine.layers.attention import AttentionGroup

STORAGE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8_e4m3": torch.uint8,
    "int8": torch.int8,
}
FP8_MAX = 448.0
INT8_MAX = 127.0


@dataclass(frozen=True, slots=True)
class PagedTensor:
    """Keys or values of one layer. data: [pages, block_size, KV, D] in the storage dtype (fp8 as its bytes).

    scales: [pages, block_size, KV] float32 for int8 and fp8_e4m3 (absmax / largest code, symmetric), else None.
    """

    dtype: str
    data: Tensor
    scales: Tensor | None

    @staticmethod
    def empty(dtype: str, pages: int, block_size: int, heads: int, head_dim: int, device: torch.device) -> PagedTensor:
        # Zeros, not garbage: a masked key is multiplied by 0, and 0 * NaN would spread.
        shape = (pages, block_size, heads)
        scales = torch.zeros(shape, device=device) if dtype in ("int8", "fp8_e4m3") else None
        data = torch.zeros((*shape, head_dim), dtype=STORAGE_DTYPES[dtype], device=device)
        return PagedTensor(dtype, data, scales)


def page_bytes(dtype: str, block_size: int, heads: int, head_dim: int) -> int:
    """Bytes of one page of one PagedTensor, scales included."""
    scale = 4 if dtype in ("int8", "fp8_e4m3") else 0
    return block_size * heads * (head_dim * STORAGE_DTYPES[dtype].itemsize + scale)


def store(paged: PagedTensor, slots: Tensor, x: Tensor) -> None:
    """Write x [T, KV, D] to slots [T], quantising per token and head where the dtype asks for it."""
    flat = paged.data.view(-1, *paged.data.shape[2:])
    if paged.scales is None:
        flat.index_copy_(0, slots, x.to(flat.dtype))
        return
    largest = INT8_MAX if paged.dtype == "int8" else FP8_MAX
    scale = x.float().abs().amax(-1).clamp_min_(1e-12).div_(largest)
    codes = x.float() / scale.unsqueeze(-1)
    if paged.dtype == "int8":
        flat.index_copy_(0, slots, codes.round_().to(torch.int8))
    else:
        flat.index_copy_(0, slots, codes.to(torch.float8_e4m3fn).view(torch.uint8))
    paged.scales.view(-1, paged.scales.shape[2]).index_copy_(0, slots, scale)


def load(paged: PagedTensor, pages: Tensor, dtype: torch.dtype) -> Tensor:
    """Pages [N] as [N, block_size, KV, D] in `dtype`."""
    data = paged.data.index_select(0, pages)
    if paged.dtype == "fp8_e4m3":
        # Five times faster on a CPU than torch's own cast from float8.
        codes = _fp8_values(data.device).index_select(0, data.view(-1).int())
        data = codes.view(data.shape)
    if paged.scales is None:
        return data.to(dtype)
    return (data.float() * paged.scales.index_select(0, pages).unsqueeze(-1)).to(dtype)


def paged_attention(
    query: Tensor, keys: PagedTensor, values: PagedTensor, groups: list[AttentionGroup], scale: float
) -> Tensor:
    """Attention of query rows [T, H, D] over the stored pages of their sequences; returns [T, H, D]."""
    outputs = []
    for group in groups:
        size, rows = group.num_sequences, group.rows
        q = query[group.first_row : group.first_row + size * rows].view(size, rows, *query.shape[1:])
        k = load(keys, group.pages, query.dtype).view(size, -1, *keys.data.shape[2:])
        v = load(values, group.pages, query.dtype).view(size, -1, *values.data.shape[2:])
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=group.mask.to(query.dtype),
            scale=scale,
            enable_gqa=True,
        )
        outputs.append(out.transpose(1, 2).reshape(size * rows, *query.shape[1:]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


_FP8_TABLES: dict[torch.device, Tensor] = {}


def _fp8_values(device: torch.device) -> Tensor:
    """The 256 values of e4m3 by code."""
    if device not in _FP8_TABLES:
        codes = torch.arange(256, dtype=torch.uint8)
        _FP8_TABLES[device] = codes.view(torch.float8_e4m3fn).float().to(device)
    return _FP8_TABLES[device]
