"""SiLU of one half times the other (SwiGLU, Shazeer 2020). The twin is `F.silu(gate) * up`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _silu_mul(out, gate_up, row_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = gate_up + row * row_stride + column
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + WIDTH, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, gate * tl.sigmoid(gate) * up, mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 x width], gate before up -> [T, width]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    block = min(BLOCK, triton.next_power_of_2(width))
    _silu_mul[(rows, triton.cdiv(width, block))](out, gate_up, gate_up.stride(0), WIDTH=width, BLOCK=block)
    return out
