"""Where the knee is looked for, against a server whose knee is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.ladder import CONFIRMATIONS, RATIO, SCALES, above, below, knee_of, next_look


@given(st.integers(-1, 30), st.floats(0.5, 20.0), st.integers(0, 30))
def test_a_server_without_noise_is_found_at_its_knee(knee: int, slope: float, first: int) -> None:
    found: dict[int, list[float]] = {}
    replays = 0
    while (rung := next_look(found, 31, first)) is not None:
        found.setdefault(rung, []).append(slope * math.log(RATIO) * (rung - knee - 0.5))
        replays += 1
        assert replays <= 31 + CONFIRMATIONS
    assert knee_of(found) == knee
    assert all(rung <= knee or len(values) <= CONFIRMATIONS for rung, values in found.items())


@pytest.mark.parametrize(
    ("found", "look"),
    [
        ({}, 0),
        ({5: [0.4]}, 0),
        ({0: [0.3]}, 0),
        ({0: [0.3, 0.2]}, None),
        ({0: [0.3, -0.2]}, 0),
        ({0: [0.3, -0.2, -0.2]}, 1),
        ({0: [-3.0]}, 8),
        ({0: [-1.0], 8: [0.1]}, 7),
        ({0: [-0.1], 8: [9.0]}, 2),
        ({4: [-0.1], 0: [-1.0], 5: [0.1]}, 5),
        ({4: [-0.1], 0: [-1.0], 5: [0.1, 0.2]}, None),
        ({0: [-9.0], 9: [-0.4]}, None),
    ],
    ids=[
        "nothing known: the recorded rate", "only a load above: the recorded rate first", "a miss there is tried again",
        "two misses: not even the recorded rate", "one of each: a third decides", "held by two of three: up",
        "much to spare: the longest stride", "nearly at its bound: just below the miss",
        "a hopeless miss says little: a quarter of the way", "the miss that bounds the knee is confirmed",
        "confirmed: known", "the ladder's end is held",
    ],
)  # fmt: skip
def test_where_it_is_looked_for_next(found: dict[int, list[float]], look: int | None) -> None:
    assert next_look(found, 10) == look


@pytest.mark.parametrize(
    ("found", "look"),
    [
        ({}, 5),
        ({5: [0.1]}, 5),
        ({5: [0.1, -0.2]}, 5),
        ({5: [0.1, 0.1]}, 4),
        ({5: [0.9, 0.9]}, 2),
        ({5: [9.0, 9.0]}, 0),
        ({5: [0.9, 0.9], 2: [-0.1]}, 3),
        ({5: [0.1, 0.2], 4: [-0.1]}, None),
        ({5: [9.0, 9.0], 0: [0.3]}, 0),
        ({5: [9.0, 9.0], 0: [0.3, 0.2]}, None),
    ],
    ids=[
        "nothing known: the recorded rate", "a miss there is tried again", "one of each: a third decides",
        "a narrow miss: the next below", "three rungs are lacking", "hopeless: no further than the lowest",
        "held below: between the two", "held right below: known", "the lowest, missed, is tried again",
        "two misses: not even the lowest",
    ],
)  # fmt: skip
def test_it_goes_down_from_a_recorded_rate_that_is_missed(found: dict[int, list[float]], look: int | None) -> None:
    assert next_look(found, 10, 5) == look


def test_rungs_are_each_others_neighbours() -> None:
    assert 1.0 in SCALES and SCALES[0] == pytest.approx(0.5, abs=0.01)
    assert [above(one) for one in SCALES[:-1]] == list(SCALES[1:])
    assert [below(one) for one in SCALES] == [None, *SCALES[:-1]]
    assert (below(1.07), above(1.07)) == (1.0, 1.15), "halfway between two rungs"
