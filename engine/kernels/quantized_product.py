"""x @ W.T for few rows and weights in 8 or 4 bits, widened on their way to the matrix product.

The twin is `QuantizedWeight.product`. At few rows a product takes as long as its weights take to read, so a quarter of
the bytes is a quarter of the time; beyond MOST_ROWS dequantising once and a dense product are faster.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.compute import compute_dtype
from engine.layers.quantization import QuantizedWeight

MOST_ROWS = 64
BLOCK_N = 32
BLOCK_K = 64


@triton.jit(do_not_specialize=["rows"])
def _product(
    out, x, codes, scales, zeros, rows, outputs, x_row,
    INPUTS: tl.constexpr, GROUPS: tl.constexpr, PACKED: tl.constexpr, ZEROS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    # A group is SIZE inputs. Packed, a stored byte holds column i of its group and column i + SIZE / 2.
    SIZE: tl.constexpr = INPUTS // GROUPS
    STORED: tl.constexpr = SIZE // 2 if PACKED else SIZE
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_used = m < rows
    column_used = n < outputs
    j = tl.arange(0, BLOCK_K)
    x_at = x + m.to(tl.int64)[:, None] * x_row + j[None, :]
    code_at = codes + n.to(tl.int64)[None, :] * (GROUPS * STORED) + j[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for group in range(GROUPS):
        part = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        entry = n * GROUPS + group
        middle = tl.zeros((BLOCK_N,), tl.float32)
        if ZEROS:
            middle += tl.load(zeros + entry, mask=column_used, other=0).to(tl.float32)
        elif PACKED:
            middle += 8.0
        for block in range(0, STORED, BLOCK_K):
            inside = block + j < STORED
            wanted = row_used[:, None] & inside[None, :]
            low = tl.load(x_at + group * SIZE + block, mask=wanted, other=0.0).to(COMPUTE)
            stored = tl.load(code_at + group * STORED + block, mask=inside[:, None] & column_used[None, :], other=0)
            if PACKED:
                high = tl.load(x_at + group * SIZE + block + STORED, mask=wanted, other=0.0).to(COMPUTE)
                weight = ((stored & 15).to(tl.float32) - middle[None, :]).to(COMPUTE)
                part += tl.dot(low, weight, input_precision="ieee")
                weight = ((stored >> 4).to(tl.float32) - middle[None, :]).to(COMPUTE)
                part += tl.dot(high, weight, input_precision="ieee")
            else:
                weight = (stored.to(tl.float32) - middle[None, :]).to(COMPUTE)
                part += tl.dot(low, weight, input_precision="ieee")
        acc += part * tl.load(scales + entry, mask=column_used, other=0.0)[None, :]
    found = out + m.to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(found, acc, mask=row_used[:, None] & column_used[None, :])


def quantized_product(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """x @ matrix.T for x [T, in]."""
    rows, (outputs, groups) = x.shape[0], weight.scales.shape
    if rows > MOST_ROWS:
        return weight.product(x)
    if weight.order is not None:
        x = x.index_select(-1, weight.order)
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    stored = weight.codes.shape[1] // groups
    block_m = max(16, min(MOST_ROWS, triton.next_power_of_2(rows)))
    _product[(triton.cdiv(rows, block_m), triton.cdiv(outputs, BLOCK_N))](
        out, x, weight.codes, weight.scales, weight.zeros, rows, outputs, x.stride(0),
        INPUTS=x.shape[1], GROUPS=groups, PACKED=weight.bits == 4, ZEROS=weight.zeros is not None,
        BLOCK_M=block_m, BLOCK_N=BLOCK_N, BLOCK_K=max(16, min(BLOCK_K, triton.next_power_of_2(stored))),
        COMPUTE=compute_dtype(x.dtype), num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
