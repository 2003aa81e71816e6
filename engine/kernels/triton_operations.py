"""`Operations` as kernels: one launch each."""

from __future__ import annotations

from torch import Tensor

from engine.kernels.attention import paged_attention
from engine.kernels.quantized_product import quantized_product as product
from engine.kernels.reference import PagedTensor
from engine.kernels.rms_norm import add_rms_norm
from engine.kernels.rotate_store import rotate_and_store
from engine.kernels.sampling import sample
from engine.kernels.silu_mul import silu_mul
from engine.layers.attention import AttentionInput
from engine.layers.norm import RMSNorm
from engine.layers.ragged import ragged_layout as layout

__all__ = ["add_norm", "attend", "layout", "product", "rotate_and_store", "sample", "silu_mul"]


def add_norm(x: Tensor, delta: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    return add_rms_norm(x, delta, norm.weight, norm.eps)


def attend(query: Tensor, keys: PagedTensor, values: PagedTensor, batch: AttentionInput, scale: float) -> Tensor:
    assert batch.ragged is not None
    return paged_attention(query, keys, values, batch.ragged, scale)
