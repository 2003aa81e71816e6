"""Residual and RMSNorm in one pass over the row. The twin is `x + delta`, then `engine.layers.norm.RMSNorm`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_norm(
    out, total, x, delta, weight, x_row, delta_row, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    wide = tl.load(x + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        wide += tl.load(delta + row * delta_row + column, mask=inside, other=0.0).to(tl.float32)
        # The norm is of what the next layer will add to, so of the rounded sum.
        rounded = wide.to(total.dtype.element_ty)
        tl.store(total + row * WIDTH + column, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    scaled = wide * factor * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, scaled, mask=inside)


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + delta, its RMSNorm) for rows x and delta [T, hidden]; delta None: nothing is added. weight: [hidden]."""
    rows, width = x.shape
    out = torch.empty_like(x)
    total = x if delta is None else torch.empty_like(x)
    _add_norm[(rows,)](
        out, total, x, delta, weight, x.stride(0), 0 if delta is None else delta.stride(0), eps,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), ADD=delta is not None, num_warps=4 if width <= 4096 else 8,
    )  # fmt: skip
    return total, out
