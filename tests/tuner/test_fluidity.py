"""Token deadlines: lead is kept, a stall counts as long as it is, and longer deadlines never make an answer worse."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import cases
from tests.tuner.builders import answered, failed
from tuner.scoring.fluidity import FLUID_SHARE, FLUIDITY, deadline_stretch, fluidity, smallest_token_gap
from tuner.scoring.metrics import fluid_token_rate
from tuner.scoring.slo import smallest_bound, token_gaps
from tuner.traffic.trace import RequestRecord

seconds = st.floats(0.0, 10.0)
gaps = st.lists(seconds, min_size=1, max_size=30)
positive = st.floats(0.001, 10.0)

SHARES = [
    ("every token on its deadline", [1.0, 0.25, 0.25], 1.0),
    ("a late first token", [1.125, 0.25], 0.5),
    ("lead pays for a stall", [0.5, 0.0, 1.0], 1.0),
    ("tokens held back to smooth the gaps miss nothing that they need not", [0.5, 0.5, 0.25], 1.0),
    ("after a miss deadlines start anew", [1.0, 0.375, 0.25, 0.25], 0.75),
    ("a stall counts as long as it is", [1.0, 2.25, 0.25], 2 / 11),
    ("no token", [], 0.0),
]


@pytest.mark.parametrize(("found", "share"), cases(SHARES))
def test_share_of_deadlines_met(found: list[float], share: float) -> None:
    assert fluidity(found, first=1.0, following=0.25) == pytest.approx(share)


@given(gaps, positive, positive, st.floats(1.0, 5.0))
def test_longer_deadlines_never_lower_it(found: list[float], first: float, following: float, factor: float) -> None:
    assert fluidity(found, first * factor, following * factor) >= fluidity(found, first, following)


@given(gaps, positive, positive, st.floats(0.1, 1.0))
def test_the_stretch_tells_the_verdict_and_the_factor(
    found: list[float], first: float, following: float, share: float
) -> None:
    stretch = deadline_stretch(found, first, following, share)
    assert (stretch <= 0) == (fluidity(found, first, following) >= share)
    if abs(stretch) < 2.99:
        longer, shorter = math.exp(stretch + 1e-4), math.exp(stretch - 1e-4)
        assert fluidity(found, first * longer, following * longer) >= share
        assert fluidity(found, first * shorter, following * shorter) < share


@given(st.lists(st.floats(0.001, 10.0), min_size=2, max_size=30))
def test_the_smallest_gap_is_enough_and_a_smaller_one_is_not(found: list[float]) -> None:
    gap = smallest_token_gap(found)
    assert fluidity(found[1:], gap, gap) >= FLUIDITY > fluidity(found[1:], gap * 0.98, gap * 0.98)


RATES: list[tuple[str, list[RequestRecord], float | None]] = [
    ("ten tokens a second", [answered(5.0, [0.1] * 20)] * 50, 10.0),
    ("one request of a hundred may be slow", [answered(5.0, [0.1] * 20)] * 99 + [answered(0.1, [9.0])], 10.0),
    ("two may not", [answered(5.0, [0.1] * 20)] * 98 + [answered(0.1, [4.0])] * 2, 0.25),
    ("refused ones count", [answered(5.0, [0.1] * 20)] * 98 + [failed()] * 2, 0.0),
    ("answers of one chunk have no pace", [answered(5.0, [0.0] * 20)] * 50, None),
    ("nothing offered", [], None),
]


@pytest.mark.parametrize(("records", "rate"), cases(RATES))
def test_fluid_token_rate(records: list[RequestRecord], rate: float | None) -> None:
    assert fluid_token_rate(records) == (None if rate is None else pytest.approx(rate, rel=0.011))


@given(st.lists(st.lists(st.floats(0.0, 10.0), max_size=8) | st.none(), min_size=1, max_size=250))
def test_the_fluid_token_rate_is_that_of_the_definition(found: list[list[float] | None]) -> None:
    records = [failed() if gaps is None else answered(0.1, gaps) for gaps in found]
    smallest = [
        math.inf if gaps is None else smallest_token_gap([0.0, *token_gaps(record)])
        for gaps, record in zip(found, records, strict=True)
    ]
    slowest = smallest_bound(smallest, FLUID_SHARE)
    assert fluid_token_rate(records) == (1 / slowest if slowest > 0 else None)
