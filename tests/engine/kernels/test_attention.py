"""The attention kernel against its twin, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from paged import CPU, both_layouts, copied, fill, gaussian, make_spans, row_order

from engine.kernels import attention, reference
from engine.kernels.reference import STORAGE_DTYPES, PagedTensor

PAGES = 24


@dataclass
class Case:
    """lengths: rows and end position of each sequence. evicted: blocks without a page, by sequence."""

    lengths: list[tuple[int, int]]
    dtype: str = "float32"
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 16
    block_size: int = 16
    window: int | None = None
    sinks: int = 0
    splits: int = 1
    evicted: dict[int, list[int]] = field(default_factory=dict)
    weigh: bool = False


CASES = {
    "a decode, a chunk and verify rows": Case([(1, 20), (13, 30), (3, 9)]),
    "the first token of a prompt": Case([(1, 1)]),
    "pages exactly full": Case([(1, 32), (16, 16), (2, 48)]),
    "a new page with one token": Case([(1, 17), (1, 33)]),
    "more rows than a block of queries": Case([(70, 70), (1, 9), (33, 50)]),
    "more rows than a block, in a window": Case([(40, 90)], heads=(5, 1), window=20, sinks=3),
    "one query head for each key head": Case([(1, 20), (5, 12)], heads=(2, 2)),
    "five query heads to a key head": Case([(1, 20), (7, 12)], heads=(5, 1)),
    "eight query heads to a key head": Case([(1, 20), (5, 12)], heads=(8, 1)),
    "twenty query heads to a key head": Case([(1, 20), (2, 12)], heads=(20, 1)),
    "a head size that is no power of two": Case([(1, 20), (5, 12)], head_dim=24),
    "pages smaller than a tile": Case([(1, 20), (7, 19)], block_size=4),
    "pages of an odd size": Case([(1, 20), (7, 19)], block_size=5),
    "pages larger than a tile": Case([(1, 70), (7, 19)], block_size=64),
    "keys split among programs": Case([(1, 90), (2, 40), (5, 33)], splits=4),
    "more programs than tiles": Case([(1, 5), (2, 20)], splits=8),
    "three programs": Case([(1, 90)], splits=3),
    "a window": Case([(1, 60), (12, 50)], window=20),
    "a window with sinks": Case([(1, 60), (12, 50)], window=10, sinks=3),
    "a window wider than the sequence": Case([(3, 12)], window=100, sinks=4),
    "a window, split": Case([(1, 90), (2, 70)], window=30, sinks=18, splits=4),
    "evicted between sinks and window": Case([(1, 70), (6, 60)], window=20, sinks=4, evicted={0: [1, 2], 1: [1]}),
    "evicted before a window without sinks": Case([(1, 70)], window=20, evicted={0: [0, 1, 2]}, splits=2),
    "heavy hitters weigh their pages": Case([(1, 70), (6, 60)], evicted={0: [1, 3], 1: [2]}, weigh=True),
    "heavy hitters in small pages": Case([(9, 20)], block_size=4, evicted={0: [1]}, weigh=True),
    "heavy hitters, split": Case([(1, 70), (2, 30)], weigh=True, splits=3, dtype="int4"),
    "heavy hitters in int8": Case([(1, 40)], weigh=True, dtype="int8"),
    **{f"pages in {dtype}": Case([(1, 40), (5, 21)], dtype=dtype) for dtype in STORAGE_DTYPES},
    **{
        f"pages in {dtype}, split": Case([(1, 40)], dtype=dtype, splits=2) for dtype in ("bfloat16", "fp8_e4m3", "int4")
    },
    "int4 with a window": Case([(4, 60)], dtype="int4", window=20, sinks=2),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_twin(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    spans = make_spans(case.lengths, case.block_size, PAGES, case.evicted)
    heads, kv_heads = case.heads
    size = (PAGES, case.block_size, kv_heads, case.head_dim, CPU)
    keys = fill(PagedTensor.empty(case.dtype, *size), spans, 100)
    values = fill(PagedTensor.empty(case.dtype, *size), spans, 200)
    groups, ragged = both_layouts(spans, case.block_size, case.window, case.sinks, case.weigh)
    assert ragged.ragged is not None
    order = row_order(groups, ragged, spans)
    query = gaussian(len(order), heads, case.head_dim, seed=1)
    scale = case.head_dim**-0.5
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kw: empty(*size, **kw).fill_(float("nan")))
    found = attention.paged_attention(query, keys, values, ragged.ragged, scale, case.splits)[order]
    monkeypatch.undo()
    wanted = reference.paged_attention(query[order], copied(keys), copied(values), groups.groups, scale)
    assert torch.allclose(found, wanted, atol=2e-6, rtol=2e-5), (found - wanted).abs().max()
    if case.weigh:
        for weighed, expected, (rows, _) in zip(ragged.page_masses(), groups.page_masses(), case.lengths, strict=True):
            width = max(len(weighed), len(expected))
            padded = [torch.tensor([*masses, *[0.0] * (width - len(masses))]) for masses in (weighed, expected)]
            assert torch.allclose(*padded, atol=1e-5)
            assert abs(sum(weighed) - rows * heads) < 1e-4
