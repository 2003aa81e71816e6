"""A step as the GPU kernels read it: rows of all sequences one after another, and a table of live pages for each.

All of it is one buffer of int32, filled on the host and copied once, from pinned memory and without waiting for the
GPU: a copy from pageable memory waits for everything launched before it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.layers.attention import AttentionInput, RaggedBatch, Span

ALIGNMENT = 4
"""Numbers to which each part of the buffer is aligned, 16 bytes: Triton compiles another version for other pointers."""


class RaggedShape(NamedTuple):
    """Sequences, rows of all of them together, live pages of a table, and rows of one sequence, at most."""

    sequences: int
    rows: int
    width: int
    max_rows: int

    def parts(self) -> list[int]:
        """Numbers in each part of the buffer: token ids, positions, slots; first rows; starts, numbers of pages;
        tables, page starts."""
        entries = self.sequences * self.width
        counts = [*[self.rows] * 3, self.sequences + 1, *[self.sequences] * 2, entries, entries]
        return [-(-count // ALIGNMENT) * ALIGNMENT for count in counts]

    @property
    def size(self) -> int:
        return sum(self.parts())


class PageTables:
    """Live pages of the sequences of a step and where each begins, on the host; a table that is the same as in the step
    before is not written again. sequences: at most; blocks: of the longest table, evicted ones counted."""

    def __init__(self, sequences: int, blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.pages, self.starts = (torch.empty(sequences, blocks, dtype=torch.int32).numpy() for _ in range(2))
        self._begins = np.arange(blocks) * block_size
        self.num_pages = np.zeros(sequences, np.int32)
        self.num_blocks = np.zeros(sequences, np.int32)
        self._written: list[list[int | None]] = [[] for _ in range(sequences)]

    def take(self, spans: list[Span]) -> int:
        """The tables of these spans, up to their ends, become the first rows. Returns the pages of the longest."""
        size = self.block_size
        for row, span in enumerate(spans):
            table, blocks = span.sequence.block_table, -(-span.end // size)
            if len(table) != blocks:
                table = table[:blocks]
            if table != self._written[row]:
                self._write(row, table)
        return int(self.num_pages[: len(spans)].max())

    def _write(self, row: int, table: list[int | None]) -> None:
        begins, pages = self._begins[: len(table)], table
        if None in table:
            begins = begins[[page is not None for page in table]]
            pages = [page for page in table if page is not None]
        self.starts[row, : len(pages)], self.pages[row, : len(pages)] = begins, pages
        self.num_pages[row], self.num_blocks[row] = len(pages), len(table)
        self._written[row] = table.copy()

    def slots(self, rows: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Where the keys of these positions go, each in the table of its row: page * block_size + offset."""
        # Nothing is missing behind the first position of a span, so counted from the end all are there.
        index = positions // self.block_size - (self.num_blocks - self.num_pages)[rows]
        begin = self.starts[rows, index]
        offset = positions - begin
        assert not ((offset < 0) | (offset >= self.block_size)).any(), "a position to be written has no page"
        slots: npt.NDArray[np.int32] = self.pages[rows, index] * self.block_size + offset.astype(np.int32)
        return slots


def ragged_layout(
    spans: list[Span],
    block_size: int,
    window: int | None,
    sink_tokens: int,
    device: torch.device,
    weigh_pages: bool = False,
) -> AttentionInput:
    """Arrange spans in the order given, for kernels that take every mix of rows in one launch."""
    tables = PageTables(len(spans), max(-(-span.end // block_size) for span in spans), block_size)
    rows = [len(span.tokens) for span in spans]
    shape = RaggedShape(len(spans), sum(rows), tables.take(spans), max(rows))
    host = pack(spans, shape, tables, pinned=device.type == "cuda")
    masses = torch.zeros(shape.sequences, shape.width, device=device) if weigh_pages else None
    return ragged_input(host.to(device, non_blocking=True), shape, window, sink_tokens, first_rows(spans), masses)


def pack(spans: list[Span], shape: RaggedShape, tables: PageTables, pinned: bool) -> Tensor:
    """The buffer on the host, [shape.size]. Rows beyond the spans' are of no sequence and have no slot (-1).

    tables: has taken the spans.
    """
    host = torch.empty(shape.size, dtype=torch.int32, pin_memory=pinned)
    token_ids, positions, slots, first, starts, num_pages, pages, begins = (
        part.numpy() for part in host.split(shape.parts())
    )
    count = len(spans)
    rows = np.array([len(span.tokens) for span in spans], np.int64)
    total = int(rows.sum())
    first[0] = 0
    first[1 : count + 1] = rows.cumsum()
    first[count + 1 :] = total
    starts[:count] = [span.start for span in spans]
    starts[count:] = 0
    num_pages[:count] = tables.num_pages[:count]
    num_pages[count:] = 0
    owner = np.repeat(np.arange(count), rows)
    position = np.arange(total) - first[owner] + starts[owner]
    positions[:total] = position
    positions[total:] = 0
    slots[:total] = tables.slots(owner, position)
    slots[total:] = -1
    token_ids[:total] = [token for span in spans for token in span.tokens]
    token_ids[total:] = 0
    entries = count * shape.width
    for part, table in ((pages, tables.pages), (begins, tables.starts)):
        part[:entries].reshape(count, shape.width)[:] = table[:count, : shape.width]
    return host


def ragged_input(
    buffer: Tensor,
    shape: RaggedShape,
    window: int | None,
    sink_tokens: int,
    first_rows: list[int],
    masses: Tensor | None = None,
) -> AttentionInput:
    """Views of a buffer [at least shape.size] that `pack` filled, on its device."""
    parts = buffer[: shape.size].split(shape.parts())
    rows, count = shape.rows, shape.sequences
    token_ids, positions, slots = (part[:rows] for part in parts[:3])
    starts, num_pages = (part[:count] for part in parts[4:6])
    tables, page_starts = (part[: count * shape.width].view(count, shape.width) for part in parts[6:])
    sinks = sink_tokens if window else 0
    batch = RaggedBatch(
        parts[3][: count + 1], starts, tables, page_starts, num_pages, shape.max_rows, window or 0, sinks, masses
    )
    return AttentionInput(token_ids, positions, slots, [], first_rows, batch)


def first_rows(spans: list[Span]) -> list[int]:
    """Flat row at which each span begins."""
    begins, row = [], 0
    for span in spans:
        begins.append(row)
        row += len(span.tokens)
    return begins
