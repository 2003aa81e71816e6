"""How much attention each page drew in a step, for `kv_heavy_tokens`: the twin is `reference._attend_and_weigh`.

A second pass over the keys with each row's sum known, which is what keeps it free of atomics: one program owns a page.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.compute import compute_dtype, high_half, low_half, widen
from engine.kernels.reference import PagedTensor
from engine.layers.attention import RaggedBatch

BLOCK_M = 16


@triton.jit(do_not_specialize=["table_row"])
def _weigh(
    masses, query, lse, key_data, key_scales, first_rows, starts, tables, page_starts, num_pages, scale,
    query_row, query_head, key_page, key_slot, key_head, scale_page, scale_slot, scale_head, table_row,
    HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, DTYPE: tl.constexpr, SCALED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0)
    sequence = tl.program_id(1)
    if index >= tl.load(num_pages + sequence):
        return
    first = tl.load(first_rows + sequence)
    rows = tl.load(first_rows + sequence + 1) - first
    start = tl.load(starts + sequence)
    entry = sequence.to(tl.int64) * table_row + index
    page = tl.load(tables + entry).to(tl.int64)
    offset = tl.arange(0, BLOCK_N)
    key_position = tl.load(page_starts + entry) + offset
    held = (offset < BLOCK_SIZE) & (key_position < start + rows)
    d = tl.arange(0, BLOCK_D)
    inside = d < WIDTH
    m = tl.arange(0, BLOCK_M)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    for kv_head in range(HEADS // GROUP):
        keys = key_data + (page * key_page + offset * key_slot + kv_head * key_head)[None, :] + d[:, None]
        stored = tl.load(keys, mask=held[None, :] & inside[:, None], other=0)
        for block in range(0, rows * GROUP, BLOCK_M):
            row = (block + m) // GROUP
            head = kv_head * GROUP + (block + m) % GROUP
            used = row < rows
            at = (first + row).to(tl.int64)
            queries = query + at[:, None] * query_row + head[:, None] * query_head + d[None, :]
            wanted = used[:, None] & inside[None, :]
            q = tl.load(queries, mask=wanted, other=0.0).to(COMPUTE)
            if DTYPE == "int4":
                q_high = tl.load(queries + WIDTH, mask=wanted, other=0.0).to(COMPUTE)
                scores = tl.dot(q, low_half(stored, COMPUTE), input_precision="ieee")
                scores += tl.dot(q_high, high_half(stored, COMPUTE), input_precision="ieee")
            else:
                scores = tl.dot(q, widen(stored, DTYPE, COMPUTE), input_precision="ieee")
            scores *= scale
            if SCALED:
                scale_at = page * scale_page + offset * scale_slot + kv_head * scale_head
                scores *= tl.load(key_scales + scale_at, mask=held, other=0.0)[None, :]
            visible = (key_position[None, :] <= (start + row)[:, None]) & held[None, :] & used[:, None]
            sums = tl.load(lse + at * HEADS + head, mask=used, other=0.0)
            mass += tl.sum(tl.where(visible, tl.exp2(scores - sums[:, None]), 0.0), 1)
    tl.store(masses + entry, tl.load(masses + entry) + tl.sum(mass, 0))


def add_page_masses(query: Tensor, keys: PagedTensor, batch: RaggedBatch, lse: Tensor, scale: float) -> None:
    """Add to batch.masses [S, P] the softmax weights that each page drew from all rows and heads.

    query: [T, H, D], rotated where the keys are. lse: [T, H], base-2 log of each row's sum. scale: of base-2 scores.
    """
    assert batch.masses is not None
    assert not batch.window, "with kv_heavy_tokens a query sees all that is held"
    heads, width, block_size = query.shape[1], keys.data.shape[3], keys.data.shape[1]
    scales = (0, 0, 0) if keys.scales is None else keys.scales.stride()
    _weigh[(batch.tables.shape[1], batch.num_sequences)](
        batch.masses, query, lse, keys.data, keys.scales,
        batch.first_rows, batch.starts, batch.tables, batch.page_starts, batch.num_pages, scale,
        *query.stride()[:2], *keys.data.stride()[:3], *scales, batch.tables.stride(0),
        HEADS=heads, GROUP=heads // keys.data.shape[2], WIDTH=width, BLOCK_D=max(16, triton.next_power_of_2(width)),
        BLOCK_SIZE=block_size, BLOCK_N=max(16, triton.next_power_of_2(block_size)), BLOCK_M=BLOCK_M,
        DTYPE=keys.dtype, SCALED=keys.scales is not None, COMPUTE=compute_dtype(query.dtype), num_warps=4,
    )  # fmt: skip
