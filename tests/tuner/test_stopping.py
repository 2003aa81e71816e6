"""When a search has had enough."""

from __future__ import annotations

import pytest

from tests.fakes import cases
from tuner.stopping import decided, plateau

FLAT = [(10.0, 1.0)]
PLATEAUS = [
    ("nothing is feasible", [None] * 40, 3, False),
    ("too few trials to say", FLAT * 10, 3, False),
    ("ten without growth", FLAT * 11, 3, True),
    ("more knobs need more patience", FLAT * 11, 8, False),
    ("16 for 8 knobs", FLAT * 17, 8, True),
    ("growth of 1 % among the last ten", FLAT * 10 + [(10.1, 1.0)], 3, False),
    ("growth of 0.4 % is none", FLAT * 10 + [(10.04, 1.0)], 3, True),
    ("growth in quality alone is growth", FLAT * 10 + [(9.0, 1.2)], 3, False),
    ("infeasible ones count as trials", FLAT + [None] * 10, 3, True),
    ("the first feasible one is no plateau", [None] * 10 + FLAT, 3, False),
]


@pytest.mark.parametrize(("found", "knobs", "expected"), cases(PLATEAUS))
def test_a_plateau(found: list[tuple[float, float] | None], knobs: int, expected: bool) -> None:
    assert plateau(found, knobs) is expected


HOPES = [
    ("no proposal of the model yet", [], False),
    ("two are too few", [0.0, 0.0], False),
    ("three without hope", [0.3, 0.001, 0.0, 0.004], True),
    ("hope among the last three", [0.0, 0.0, 0.01, 0.0], False),
]


@pytest.mark.parametrize(("hopes", "expected"), cases(HOPES))
def test_the_winner_is_decided(hopes: list[float], expected: bool) -> None:
    assert decided(hopes) is expected
