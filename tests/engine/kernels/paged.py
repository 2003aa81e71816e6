"""Random pages and steps for tests of kernels, here and on a GPU (benchmarks/gpu_check.py).

Everything that may not be read is poisoned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kernels.reference import PagedTensor, store
from engine.layers.attention import AttentionInput, Span, layout
from engine.layers.ragged import ragged_layout
from engine.sequence import SamplingParams, Sequence

CPU = torch.device("cpu")


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_spans(
    lengths: list[tuple[int, int]], block_size: int, pages: int, evicted: dict[int, list[int]]
) -> list[Span]:
    """Sequences that end at `end` with `rows` new tokens each, (rows, end), on pages in random order.

    evicted: blocks of a sequence's table that hold no page any more.
    """
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(5)).tolist()
    spans = []
    for index, (rows, end) in enumerate(lengths):
        table = [order.pop() for _ in range(-(-end // block_size))]
        holes = [None if block in evicted.get(index, []) else page for block, page in enumerate(table)]
        sequence = Sequence(str(index), (0,) * end, SamplingParams(), 0, block_table=holes)
        spans.append(Span(sequence, end - rows, [0] * rows))
    return spans


def fill(paged: PagedTensor, spans: list[Span], seed: int) -> PagedTensor:
    """Store random numbers at every position of every sequence; what else the pages hold is NaN or 127."""
    block_size, heads = paged.data.shape[1:3]
    head_dim = paged.data.shape[3] * (2 if paged.dtype == "int4" else 1)
    if paged.data.is_floating_point():
        paged.data.fill_(float("nan"))
    else:
        paged.data.fill_(127)
    if paged.scales is not None:
        paged.scales.fill_(float("nan"))
    for index, span in enumerate(spans):
        positions = torch.arange(span.end)
        table = torch.tensor([-1 if page is None else page for page in span.sequence.block_table])
        page = table[positions // block_size]
        held = page >= 0
        slots = (page * block_size + positions % block_size)[held].to(paged.data.device)
        numbers = gaussian(len(slots), heads, head_dim, seed=seed + index).to(slots.device)
        store(paged, slots, numbers)
    return paged


def copied(paged: PagedTensor) -> PagedTensor:
    """The same with zeros for poison: the twin multiplies masked keys by 0."""
    data = paged.data.clone()
    if data.is_floating_point():
        data.nan_to_num_(0.0)
    elif paged.dtype == "fp8_e4m3":
        data[data == 127] = 0  # NaN
    return PagedTensor(paged.dtype, data, None if paged.scales is None else paged.scales.nan_to_num(0.0))


def both_layouts(
    spans: list[Span],
    block_size: int,
    window: int | None,
    sinks: int,
    weigh: bool = False,
    device: torch.device = CPU,
) -> tuple[AttentionInput, AttentionInput]:
    """The twin's groups and the kernels' tables. Rows of the two may come in different orders: see first_rows."""
    return (
        layout(spans, block_size, window, sinks, device, weigh),
        ragged_layout(spans, block_size, window, sinks, device, weigh),
    )


def row_order(groups: AttentionInput, ragged: AttentionInput, spans: list[Span]) -> Tensor:
    """Index that brings rows of the kernels' layout into the twin's."""
    order = torch.empty(len(ragged.token_ids), dtype=torch.int64)
    for there, here, span in zip(groups.first_rows, ragged.first_rows, spans, strict=True):
        order[there : there + len(span.tokens)] = torch.arange(here, here + len(span.tokens))
    return order
