"""Forward passes captured as CUDA graphs: one launch instead of the hundreds that Python is too slow for.

A graph is captured for a bucket of sequences, the rows of one sequence (1 in decode, 1 + K to verify K guesses) and a
bucket of table widths, when it is first needed. Prefills are not: at their many rows the GPU is slower than Python.
"""

from __future__ import annotations

import bisect
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from engine.layers.attention import AttentionInput, Span
from engine.layers.ragged import RaggedShape
from engine.static_batch import StaticBatch

log = logging.getLogger("servetune.engine")

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs a function of fixed buffers, and returns what does the same to them again."""

BATCH_BUCKETS = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
"""Sequences that a graph is captured for; larger steps run eagerly."""
NARROWEST_TABLE = 256
"""Tokens of the narrowest tables; each next bucket has four times as many, and splits of the keys to suit them."""


class CudaCapture:
    """Captures on the current device. All graphs of one object share a pool of memory: one of them runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        run()  # compiles kernels and sets up cuBLAS, which a capture cannot
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        return graph.replay


class Prepared(NamedTuple):
    """A step ready to be computed. batch: its token ids may still be written to, on the device; it may have more rows
    than the spans, behind theirs. run: hidden states of its rows, [T, hidden]. Both last until its next step."""

    batch: AttentionInput
    run: Callable[[], Tensor]


class CudaGraphs:
    """The graphs of one model. forward: hidden states [T, hidden] of a step; what it launches may follow from shapes
    alone. static: what they read and write."""

    def __init__(
        self,
        forward: Callable[[AttentionInput], Tensor],
        static: StaticBatch,
        capture: Capture,
    ) -> None:
        self._forward = forward
        self._static = static
        self._capture = capture
        self._buckets = batch_buckets(static.largest.sequences)
        self._widths = table_widths(static.largest.width, static.block_size)
        self._graphs: dict[RaggedShape, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def restart(self, capture: Capture) -> None:
        """Drop every graph; what is needed is captured anew."""
        self._graphs.clear()
        self._capture = capture

    def prepare(self, spans: list[Span]) -> Prepared | None:
        """The step in the static buffers with its graph, or None where it has to run eagerly."""
        shape = self._shape(spans)
        if shape is None:
            return None
        if (replay := self._graphs.get(shape)) is None:
            replay = self._captured(shape)
        batch = self._static.fill(spans, shape)

        def run() -> Tensor:
            replay()
            return self._static.hidden[: shape.rows]

        return Prepared(batch, run)

    def _shape(self, spans: list[Span]) -> RaggedShape | None:
        """The smallest shape that holds the spans, None where less than half of its rows would be theirs."""
        counts = [len(span.tokens) for span in spans]
        rows = max(counts)
        if len(spans) > self._buckets[-1] or rows > self._static.largest.max_rows:
            return None
        if 2 * sum(counts) < rows * len(spans):
            return None
        sequences = _at_least(len(spans), self._buckets)
        return _shape(sequences, rows, _at_least(self._static.widest(spans), self._widths))

    def _captured(self, shape: RaggedShape) -> Callable[[], None]:
        if not any(known.max_rows == shape.max_rows for known in self._graphs):
            # The largest first: what it takes from the pool is enough for the others.
            self._record(_shape(self._buckets[-1], shape.max_rows, shape.width))
        if shape not in self._graphs:
            self._record(shape)
        return self._graphs[shape]

    def _record(self, shape: RaggedShape) -> None:
        began = time.perf_counter()
        # Without sequences no page is touched, whatever the graph is run for.
        self._static.fill([], shape)
        batch = self._static.view(shape)
        hidden = self._static.hidden[: shape.rows]
        self._graphs[shape] = self._capture(lambda: _copy(hidden, self._forward(batch)))
        log.debug("captured %s in %.3f s", shape, time.perf_counter() - began)


def _copy(target: Tensor, source: Tensor) -> None:
    # Inside the graph, so that the pool may give the source's memory to the next one.
    target.copy_(source)


def batch_buckets(max_num_seqs: int) -> tuple[int, ...]:
    """Numbers of sequences up to max_num_seqs that are captured, itself included (where it is no more than 512)."""
    last = min(max_num_seqs, BATCH_BUCKETS[-1])
    return (*[bucket for bucket in BATCH_BUCKETS if bucket < last], last)


def table_widths(width: int, block_size: int) -> tuple[int, ...]:
    """Pages of the tables that are captured, up to `width`, itself included."""
    widths = []
    tokens = NARROWEST_TABLE
    while (pages := -(-tokens // block_size)) < width:
        widths.append(pages)
        tokens *= 4
    return (*widths, width)


def _at_least(number: int, buckets: tuple[int, ...]) -> int:
    return buckets[bisect.bisect_left(buckets, number)]


def _shape(sequences: int, rows: int, width: int) -> RaggedShape:
    return RaggedShape(sequences, sequences * rows, width, rows)
