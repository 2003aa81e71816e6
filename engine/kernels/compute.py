"""What every Triton kernel shares: the dtype it computes in, and how stored numbers become that.

Triton's interpreter (TRITON_INTERPRET=1, a CPU) does bfloat16 arithmetic on raw bits and rounds stores to bfloat16 and
float8 wrongly, without a word. So operands are widened right after each load, to float32 there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in the interpreter: fixed when triton is first imported."""
_COMPUTE = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def compute_dtype(dtype: torch.dtype) -> tl.dtype:
    """Operands of products: the activations' own dtype on a GPU, float32 in the interpreter. Sums are float32."""
    return tl.float32 if INTERPRETED else _COMPUTE[dtype]


@triton.jit
def widen(stored, DTYPE: tl.constexpr, COMPUTE: tl.constexpr):
    """Stored numbers of a page, one to a byte or more, before the scale."""
    if DTYPE == "fp8_e4m3":
        return stored.to(tl.float8e4nv, bitcast=True).to(COMPUTE)
    return stored.to(COMPUTE)


@triton.jit
def low_half(stored, COMPUTE: tl.constexpr):
    """Channels [0, D / 2) of packed int4."""
    return ((stored & 15).to(tl.float32) - 7.5).to(COMPUTE)


@triton.jit
def high_half(stored, COMPUTE: tl.constexpr):
    """Channels [D / 2, D) of packed int4."""
    return ((stored >> 4).to(tl.float32) - 7.5).to(COMPUTE)
