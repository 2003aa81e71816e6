"""A step as the GPU kernels read it: rows of all sequences one after another, and a table of live pages for each."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.layers.attention import OUT_OF_SIGHT, AttentionInput, RaggedBatch, Span, live_pages, slots_of


def ragged_layout(
    spans: list[Span],
    block_size: int,
    window: int | None,
    sink_tokens: int,
    device: torch.device,
    weigh_pages: bool = False,
) -> AttentionInput:
    """Arrange spans in the order given, for kernels that take every mix of rows in one launch."""
    live = [live_pages(span, block_size) for span in spans]
    width = max(len(pages) for pages, _ in live)
    first_rows = [0]
    for span in spans:
        first_rows.append(first_rows[-1] + len(span.tokens))

    def tensor(values: object, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    batch = RaggedBatch(
        tensor(first_rows),
        tensor([span.start for span in spans]),
        tensor([pages + [0] * (width - len(pages)) for pages, _ in live]),
        tensor([starts + [OUT_OF_SIGHT] * (width - len(starts)) for _, starts in live]),
        tensor([len(pages) for pages, _ in live]),
        max(len(span.tokens) for span in spans),
        window or 0,
        sink_tokens if window else 0,
        torch.zeros(len(spans), width, device=device) if weigh_pages else None,
    )
    return AttentionInput(
        tensor([token for span in spans for token in span.tokens], torch.int64),
        tensor([p for span in spans for p in range(span.start, span.end)], torch.int64),
        tensor([slot for span in spans for slot in slots_of(span, block_size)], torch.int64),
        [],
        first_rows[:-1],
        batch,
    )
