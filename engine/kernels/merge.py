"""Attention over parts of the keys, put together: each part counts by what its softmax weighed before division.

The twin is a softmax over all keys at once; `attention` is the only caller.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _merge(
    out, lse, partial_out, partial_max, partial_sum,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_S)
    there = split < SPLITS
    largest = tl.load(partial_max + at * SPLITS + split, mask=there, other=float("-inf"))
    most = tl.max(largest, 0)
    share = tl.exp2(largest - most)
    total = tl.sum(share * tl.load(partial_sum + at * SPLITS + split, mask=there, other=0.0), 0)
    d = tl.arange(0, BLOCK_D)
    parts = partial_out + (at * SPLITS + split)[:, None] * WIDTH + d[None, :]
    values = tl.load(parts, mask=there[:, None] & (d < WIDTH)[None, :], other=0.0)
    tl.store(out + at * WIDTH + d, tl.sum(values * share[:, None], 0) / total, mask=d < WIDTH)
    tl.store(lse + at, most + tl.log2(total))


def merge_splits(
    out: Tensor, lse: Tensor, partial_out: Tensor, partial_max: Tensor, partial_sum: Tensor, splits: int
) -> None:
    """Fill out [T, H, D] (contiguous) and lse [T, H], the base-2 logarithm of the sum over all keys.

    partial_out: [T, H, splits, D], weighted sums before division; partial_max and partial_sum: [T, H, splits], the
    largest base-2 score and the sum of 2 ^ (score - largest). At least one part of each row saw a key.
    """
    rows, heads, width = out.shape
    _merge[(rows * heads,)](
        out, lse, partial_out, partial_max, partial_sum,
        WIDTH=width, BLOCK_D=triton.next_power_of_2(width),
        SPLITS=splits, BLOCK_S=triton.next_power_of_2(splits), num_warps=4,
    )  # fmt: skip
