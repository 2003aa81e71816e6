"""A step at addresses that never change: what a captured graph reads, and where it leaves its hidden states."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.layers.attention import AttentionInput, Span
from engine.layers.ragged import PageTables, RaggedShape, first_rows, pack, ragged_input


class StaticBatch:
    """Buffers for any step of up to `largest`. hidden: [largest.rows, hidden size], where graphs put their results.

    Each shape has its own division of the one buffer, so only the shape that was filled last can be computed.
    window, sink_tokens: the visibility rule.
    """

    def __init__(
        self,
        largest: RaggedShape,
        hidden_size: int,
        dtype: torch.dtype,
        block_size: int,
        window: int | None,
        sink_tokens: int,
        device: torch.device,
    ) -> None:
        self.largest, self.block_size = largest, block_size
        self.hidden = torch.empty(largest.rows, hidden_size, dtype=dtype, device=device)
        self._buffer = torch.empty(largest.size, dtype=torch.int32, device=device)
        self._tables = PageTables(largest.sequences, largest.width, block_size)
        self._visible = (window, sink_tokens)

    def widest(self, spans: list[Span]) -> int:
        """Live pages of the longest table among these spans, which the next `fill` is to bring."""
        return self._tables.take(spans)

    def fill(self, spans: list[Span], shape: RaggedShape) -> AttentionInput:
        """The spans as a step of this shape, which may be larger; without spans, one that neither reads nor writes a
        page."""
        host = pack(spans, shape, self._tables, pinned=self._buffer.is_cuda)
        self._buffer[: shape.size].copy_(host, non_blocking=True)
        return replace(self.view(shape), first_rows=first_rows(spans))

    def view(self, shape: RaggedShape) -> AttentionInput:
        """The buffers as a step of this shape."""
        return ragged_input(self._buffer, shape, *self._visible, [])
