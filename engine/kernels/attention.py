"""Attention over the paged cache for any mix of prefill chunks, decodes and verify rows, in one launch.

The twin is `reference.paged_attention`. One program takes a block of query rows with all heads of one key/value head,
and a share (split) of its keys: rows x group fill the tile of the matrix product (vLLM's unified attention). The grid
follows from shapes alone, so a launch needs nothing from the device and can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.block_sizes import attention_blocks
from engine.kernels.compute import compute_dtype, high_half, low_half, widen
from engine.kernels.hadamard import rotation
from engine.kernels.merge import merge_splits
from engine.kernels.page_masses import add_page_masses
from engine.kernels.reference import PagedTensor
from engine.layers.attention import RaggedBatch

LOG2_E = 1.4426950408889634


@triton.jit
def owner(first_rows, block, num_sequences, BLOCK_Q: tl.constexpr):
    """The sequence of a query block. Sequence s begins at block first_rows[s] // BLOCK_Q + s; some stay empty."""
    low = 0
    high = num_sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(first_rows + middle) // BLOCK_Q + middle <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


# What changes from step to step: a version compiled for each of its multiples of 16 would stall the first such step.
@triton.jit(do_not_specialize=["num_sequences", "window", "sinks", "table_row"])
def _attend(
    out, lse, partial_out, partial_max, partial_sum,
    query, key_data, value_data, key_scales, value_scales,
    first_rows, starts, tables, page_starts, num_pages,
    num_sequences, scale, window, sinks,
    out_row, out_head, query_row, query_head,
    key_page, key_slot, key_head, value_page, value_slot, value_head,
    scale_page, scale_slot, scale_head, table_row,
    HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    WINDOWED: tl.constexpr, DTYPE: tl.constexpr, SCALED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    sequence = owner(first_rows, block, num_sequences, BLOCK_Q)
    first = tl.load(first_rows + sequence)
    rows = tl.load(first_rows + sequence + 1) - first
    row0 = (block - first // BLOCK_Q - sequence) * BLOCK_Q
    if row0 >= rows:
        return
    start = tl.load(starts + sequence)
    pages = tl.load(num_pages + sequence)
    table = tables + sequence.to(tl.int64) * table_row
    begins = page_starts + sequence.to(tl.int64) * table_row

    m = tl.arange(0, BLOCK_M)
    row = row0 + m // GROUP
    head = kv_head * GROUP + m % GROUP
    used = (m < BLOCK_Q * GROUP) & (row < rows)
    position = start + row
    d = tl.arange(0, BLOCK_D)
    inside = d < WIDTH
    wanted = used[:, None] & inside[None, :]
    at = (first + row).to(tl.int64)
    queries = query + at[:, None] * query_row + head[:, None] * query_head + d[None, :]
    q = tl.load(queries, mask=wanted, other=0.0).to(COMPUTE)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if DTYPE == "int4":
        q_high = tl.load(queries + WIDTH, mask=wanted, other=0.0).to(COMPUTE)
        acc_high = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)

    # Positions that eviction took from the table before its last pages, which hold this step's rows.
    gap = tl.load(begins + pages - 1) + BLOCK_SIZE - pages * BLOCK_SIZE
    tiles = (start + tl.minimum(row0 + BLOCK_Q, rows) - gap + TILE - 1) // TILE
    sink_tiles = 0
    skipped = 0
    if WINDOWED:
        sink_tiles = tl.minimum((sinks + TILE - 1) // TILE, tiles)
        skipped = tl.maximum(tl.maximum(start + row0 - window + 1 - gap, 0) // TILE - sink_tiles, 0)
        tiles -= skipped
    share = (tiles + SPLITS - 1) // SPLITS
    for i in range(split * share, tl.minimum((split + 1) * share, tiles)):
        tile = i
        if WINDOWED:
            tile = tl.where(i >= sink_tiles, i + skipped, i)
        if BLOCK_SIZE % TILE == 0:
            index = tile * TILE // BLOCK_SIZE
            offset = tile * TILE % BLOCK_SIZE + tl.arange(0, TILE)
            page = tl.load(table + index).to(tl.int64)
            key_position = tl.load(begins + index) + offset
        else:
            slots = tile * TILE + tl.arange(0, TILE)
            index = slots // BLOCK_SIZE
            offset = slots % BLOCK_SIZE
            page = tl.load(table + index, mask=index < pages, other=0).to(tl.int64)
            key_position = tl.load(begins + index, mask=index < pages, other=2**30) + offset
        # What was not written yet is not read either: 0 * NaN would spread.
        held = key_position < start + rows
        keys = key_data + (page * key_page + offset * key_slot + kv_head * key_head)[None, :] + d[:, None]
        stored = tl.load(keys, mask=held[None, :] & inside[:, None], other=0)
        if DTYPE == "int4":
            scores = tl.dot(q, low_half(stored, COMPUTE), input_precision="ieee")
            scores += tl.dot(q_high, high_half(stored, COMPUTE), input_precision="ieee")
        else:
            scores = tl.dot(q, widen(stored, DTYPE, COMPUTE), input_precision="ieee")
        scores *= scale
        scale_at = page * scale_page + offset * scale_slot + kv_head * scale_head
        if SCALED:
            scores *= tl.load(key_scales + scale_at, mask=held, other=0.0)[None, :]
        visible = key_position[None, :] <= position[:, None]
        if WINDOWED:
            near = key_position[None, :] > position[:, None] - window
            visible = visible & (near | (key_position < sinks)[None, :])
        scores = tl.where(visible, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        # A row that saw nothing yet stays at -inf, and -inf - -inf is no number.
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(largest - base)
        total = total * shrink + tl.sum(weights, 1)
        largest = larger
        if SCALED:
            weights *= tl.load(value_scales + scale_at, mask=held, other=0.0)[None, :]
        narrow = weights.to(COMPUTE)
        values = value_data + (page * value_page + offset * value_slot + kv_head * value_head)[:, None] + d[None, :]
        stored = tl.load(values, mask=held[:, None] & inside[None, :], other=0)
        if DTYPE == "int4":
            acc = acc * shrink[:, None] + tl.dot(narrow, low_half(stored, COMPUTE), input_precision="ieee")
            acc_high = acc_high * shrink[:, None] + tl.dot(narrow, high_half(stored, COMPUTE), input_precision="ieee")
        else:
            acc = acc * shrink[:, None] + tl.dot(narrow, widen(stored, DTYPE, COMPUTE), input_precision="ieee")

    if SPLITS == 1:
        total = tl.where(used, total, 1.0)  # rows beyond the sequence may have seen nothing
        found = out + at[:, None] * out_row + head[:, None] * out_head + d[None, :]
        tl.store(found, acc / total[:, None], mask=wanted)
        if DTYPE == "int4":
            tl.store(found + WIDTH, acc_high / total[:, None], mask=wanted)
        tl.store(lse + at * HEADS + head, largest + tl.log2(total), mask=used)
    else:
        part = (at * HEADS + head) * SPLITS + split
        tl.store(partial_max + part, largest, mask=used)
        tl.store(partial_sum + part, total, mask=used)
        if DTYPE == "int4":
            found = partial_out + part[:, None] * (2 * WIDTH) + d[None, :]
            tl.store(found + WIDTH, acc_high, mask=wanted)
        else:
            found = partial_out + part[:, None] * WIDTH + d[None, :]
        tl.store(found, acc, mask=wanted)


def paged_attention(
    query: Tensor, keys: PagedTensor, values: PagedTensor, batch: RaggedBatch, scale: float, splits: int | None = None
) -> Tensor:
    """Attention of query rows [T, H, D] over the stored pages of their sequences; returns [T, H, D].

    splits: programs that share the keys of one query block; None: by the shipped table.
    """
    if keys.dtype == "int4":
        query = (query.float() @ rotation(query.shape[2], query.device)).to(query.dtype)
    rows, heads, head_dim = query.shape
    kv_heads = keys.data.shape[2]
    group = heads // kv_heads
    blocks = attention_blocks(head_dim, group, keys.dtype, batch, keys.data.shape[1])
    parts = blocks.splits if splits is None else splits
    block_m = max(blocks.rows, triton.next_power_of_2(group))
    block_q = block_m // group
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(rows, heads, dtype=torch.float32, device=query.device)
    spread = torch.empty(rows, heads, parts, head_dim + 2 if parts > 1 else 0, dtype=torch.float32, device=query.device)
    partial_out, partial_max, partial_sum = spread.view(-1).split(
        [rows * heads * parts * n if parts > 1 else 0 for n in (head_dim, 1, 1)]
    )
    width = keys.data.shape[3]
    scales = (0, 0, 0) if keys.scales is None else keys.scales.stride()
    _attend[(rows // block_q + batch.num_sequences, kv_heads, parts)](
        out, lse, partial_out, partial_max, partial_sum,
        query, keys.data, values.data, keys.scales, values.scales,
        batch.first_rows, batch.starts, batch.tables, batch.page_starts, batch.num_pages,
        batch.num_sequences, scale * LOG2_E, batch.window, batch.sinks,
        *out.stride()[:2], *query.stride()[:2], *keys.data.stride()[:3], *values.data.stride()[:3],
        *scales, batch.tables.stride(0),
        HEADS=heads, GROUP=group, WIDTH=width, BLOCK_D=max(16, triton.next_power_of_2(width)),
        BLOCK_SIZE=keys.data.shape[1], BLOCK_Q=block_q, BLOCK_M=block_m, TILE=blocks.tile, SPLITS=parts,
        WINDOWED=batch.window > 0, DTYPE=keys.dtype, SCALED=keys.scales is not None,
        COMPUTE=compute_dtype(query.dtype), num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    if parts > 1:
        merge_splits(out, lse, partial_out, partial_max, partial_sum, parts)
    if batch.masses is not None:
        add_page_masses(query, keys, batch, lse, scale * LOG2_E)
    if values.dtype == "int4":
        out = (out.float() @ rotation(head_dim, query.device).T).to(query.dtype)
    return out
