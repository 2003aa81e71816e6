"""`Operations` in torch: the specification of the kernels, and the path taken on CPUs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from engine.kernels.reference import PagedTensor, paged_attention, store
from engine.layers.attention import AttentionInput, layout
from engine.layers.norm import RMSNorm
from engine.layers.quantization import QuantizedWeight
from engine.layers.rotary import rotate
from engine.layers.sampler import sample

__all__ = ["add_norm", "attend", "layout", "product", "rotate_and_store", "sample", "silu_mul"]


def add_norm(x: Tensor, delta: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    total = x if delta is None else x + delta
    return total, norm(total)


def rotate_and_store(
    qkv: Tensor,
    angles: tuple[Tensor, Tensor],
    slots: Tensor,
    norm: RMSNorm | None,
    keys: PagedTensor,
    values: PagedTensor,
) -> Tensor:
    kv_heads = keys.data.shape[2]
    heads = qkv.shape[1] - 2 * kv_heads
    qk = qkv[:, : heads + kv_heads]
    qk = rotate(qk if norm is None else norm(qk), *angles)
    store(keys, slots, qk[:, heads:])
    store(values, slots, qkv[:, heads + kv_heads :])
    return qk[:, :heads]


def attend(query: Tensor, keys: PagedTensor, values: PagedTensor, batch: AttentionInput, scale: float) -> Tensor:
    return paged_attention(query, keys, values, batch.groups, scale)


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def product(x: Tensor, weight: QuantizedWeight) -> Tensor:
    return weight.product(x)
