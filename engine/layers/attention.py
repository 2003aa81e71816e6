"""What attention needs to know of a step: where new keys go, and what each query may see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.layers.upload import upload
from engine.sequence import Sequence

OUT_OF_SIGHT = 2**30
"""Start position of a padding page: beyond every query."""


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Sequences of a step with the same number of query rows and alike numbers of pages.

    first_row: where the group starts in the step's flat rows. num_sequences B, rows Q.
    pages: [B * P] page numbers. mask: [B, 1, Q, P * block_size], 0 where visible and -inf elsewhere.
    spans: index of each member. masses: [B, P], where attention adds what each page drew, or None.
    """

    first_row: int
    num_sequences: int
    rows: int
    pages: Tensor
    mask: Tensor
    spans: list[int]
    masses: Tensor | None


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """S sequences of a step, any number of query rows each, P live pages at most.

    first_rows: [S + 1], where each begins in the flat rows; some may have none. starts: [S], position of its first row.
    tables: [S, P] page numbers, page_starts: [S, P] the position at which each begins; num_pages: [S], and what stands
    beyond is never read. All int32. The pages that hold a sequence's rows are the last of its table, and none is
    missing among them.
    max_rows: of one sequence. window and sinks: the visibility rule of engine.kv_cache, in tokens; window 0: none.
    masses: [S, P], where attention adds what each page drew, or None.
    """

    first_rows: Tensor
    starts: Tensor
    tables: Tensor
    page_starts: Tensor
    num_pages: Tensor
    max_rows: int
    window: int
    sinks: int
    masses: Tensor | None

    @property
    def num_sequences(self) -> int:
        return self.starts.shape[0]


@dataclass(frozen=True, slots=True)
class Span:
    """Positions [start, end) of one sequence that a forward pass computes. tokens: their ids, len end - start."""

    sequence: Sequence
    start: int
    tokens: list[int]

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class AttentionInput:
    """One forward pass, flat. order: index of each span in the flat layout's order.

    token_ids, positions, slots: [T]; a slot is page * block_size + offset. first_rows: first flat row of each span,
    in the order of the spans given. ragged: the same for kernels that need no groups; then there are none.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    groups: list[AttentionGroup]
    first_rows: list[int]
    ragged: RaggedBatch | None = None

    def put(self, rows: list[int], tokens: Tensor) -> None:
        """Write tokens [len(rows)], which the host need not know, to these rows."""
        if rows == list(range(rows[0], rows[0] + len(rows))):
            self.token_ids[rows[0] : rows[0] + len(rows)].copy_(tokens)
        else:
            self.token_ids.index_copy_(0, upload(rows, tokens.device), tokens.to(self.token_ids.dtype))

    def page_masses(self) -> list[tuple[float, ...]]:
        """Per span, what each page of its table drew in this pass, 0 for padding at the end; or nothing."""
        if self.ragged is not None and self.ragged.masses is not None:
            return [tuple(masses) for masses in self.ragged.masses.tolist()]
        found: list[tuple[float, ...]] = [()] * len(self.first_rows)
        for group in self.groups:
            if group.masses is not None:
                for index, masses in zip(group.spans, group.masses.tolist(), strict=True):
                    found[index] = tuple(masses)
        return found


def layout(
    spans: list[Span],
    block_size: int,
    window: int | None,
    sink_tokens: int,
    device: torch.device,
    weigh_pages: bool = False,
) -> AttentionInput:
    """Arrange spans into groups that each attend as one padded batch without padding the query side."""
    buckets: dict[tuple[int, int], list[int]] = {}
    live = [live_pages(span, block_size) for span in spans]
    for index, span in enumerate(spans):
        # Lengths in one bucket differ by less than a factor of two, which bounds what padding can waste.
        buckets.setdefault((len(span.tokens), len(live[index][0]).bit_length()), []).append(index)
    first_rows = [0] * len(spans)
    groups: list[AttentionGroup] = []
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for (rows, _), members in buckets.items():
        first = len(token_ids)
        for index in members:
            span = spans[index]
            first_rows[index] = len(token_ids)
            token_ids += span.tokens
            positions += range(span.start, span.end)
            slots += slots_of(span, block_size)
        visible = _Visible(block_size, window, sink_tokens, device)
        pages, mask = visible.pages_and_mask(rows, [spans[i] for i in members], [live[i] for i in members])
        masses = torch.zeros(len(members), len(pages) // len(members), device=device) if weigh_pages else None
        groups.append(AttentionGroup(first, len(members), rows, pages, mask, members, masses))
    return AttentionInput(
        upload(token_ids, device),
        upload(positions, device),
        upload(slots, device),
        groups,
        first_rows,
    )


def live_pages(span: Span, block_size: int) -> tuple[list[int], list[int]]:
    """Pages that hold positions below span.end, and the position at which each begins."""
    table = span.sequence.block_table[: -(-span.end // block_size)]
    pages, starts = [], []
    for index, page in enumerate(table):
        if page is not None:
            pages.append(page)
            starts.append(index * block_size)
    return pages, starts


def slots_of(span: Span, block_size: int) -> list[int]:
    """Slots of its positions, page * block_size + offset."""
    slots = []
    for position in range(span.start, span.end):
        page = span.sequence.block_table[position // block_size]
        assert page is not None, "a position to be written has no page"
        slots.append(page * block_size + position % block_size)
    return slots


@dataclass(frozen=True, slots=True)
class _Visible:
    block_size: int
    window: int | None
    sink_tokens: int
    device: torch.device

    def pages_and_mask(
        self, rows: int, spans: list[Span], live: list[tuple[list[int], list[int]]]
    ) -> tuple[Tensor, Tensor]:
        width = max(len(pages) for pages, _ in live)
        pages = [page for numbers, _ in live for page in numbers + [0] * (width - len(numbers))]
        starts = [start for _, begins in live for start in begins + [OUT_OF_SIGHT] * (width - len(begins))]
        begin = upload(starts, self.device).view(len(spans), width, 1)
        keys = (begin + torch.arange(self.block_size, device=self.device)).view(len(spans), 1, -1)
        queries = upload([s.start for s in spans], self.device).view(-1, 1, 1)
        queries = queries + torch.arange(rows, device=self.device).view(1, rows, 1)
        visible = keys <= queries
        if self.window is not None:
            visible &= (keys > queries - self.window) | (keys < self.sink_tokens)
        mask = torch.zeros(visible.shape, device=self.device).masked_fill_(~visible, float("-inf"))
        return upload(pages, self.device), mask.unsqueeze(1)
