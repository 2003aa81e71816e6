"""Screening: a spread of candidates, a diverse few in order, and whether they deserve to be followed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from search_spaces.space import ChoiceParameter, FloatParameter, IntParameter, SearchSpace, key
from tuner.screening import NEAREST, Candidate, Knobs, distance, drawn, neighbours, pick, screen, trust
from tuner.surrogate import FloatArray

SPACE = SearchSpace(
    {
        "seqs": IntParameter(8, 64, log=True),
        "chunk": ChoiceParameter((None, 32, 128)),
        "dtype": ChoiceParameter(("auto", "int8", "int4")),
        "window": ChoiceParameter((None, 256)),
        "sinks": IntParameter(0, 8, step=4, when={"window": "not_null"}),
        "share": FloatParameter(0.1, 0.9),
    }
)
BASELINE = {"seqs": 16, "chunk": None, "dtype": "auto", "window": None, "share": 0.5}


def speed(knobs: Knobs) -> float:
    """More seats and fewer bits are faster; a window too."""
    bits = {"auto": 0, "int8": 10, "int4": 20}[knobs["dtype"]]
    return float(knobs["seqs"] + bits + (5 if knobs["window"] else 0))


def test_candidates_are_valid_different_and_not_the_baseline() -> None:
    found = drawn(SPACE, BASELINE, seed=3, count=200)
    assert len(found) == len({key(knobs) for knobs in found}) == 200
    assert all(dict(SPACE.active(knobs)) == knobs for knobs in found) and BASELINE not in found
    assert found == drawn(SPACE, BASELINE, seed=3, count=200) != drawn(SPACE, BASELINE, seed=4, count=200)


def test_candidates_are_spread_evenly() -> None:
    found = drawn(SPACE, BASELINE, seed=0, count=256)[len(neighbours(SPACE, BASELINE)) :]
    for name in ("chunk", "dtype", "window"):
        counts = Counter(knobs[name] for knobs in found)
        assert max(counts.values()) - min(counts.values()) < 0.2 * len(found), name
    # A logarithmic scale: as many below its geometric middle as above.
    assert 0.4 < sum(knobs["seqs"] <= 22 for knobs in found) / len(found) < 0.6
    assert {knobs["sinks"] for knobs in found if knobs["window"]} == {0, 4, 8}


def test_a_small_space_is_taken_whole() -> None:
    space = SearchSpace({"a": ChoiceParameter((1, 2)), "b": ChoiceParameter((1, 2, 3))})
    assert len(drawn(space, {"a": 1, "b": 1}, seed=0, count=50)) == 5


def test_neighbours_differ_from_the_baseline_in_one_knob() -> None:
    found = neighbours(SPACE, BASELINE)
    assert {"seqs": 64, "chunk": None, "dtype": "auto", "window": None, "share": 0.5} in found
    assert {**BASELINE, "window": 256, "sinks": 0} in found
    assert all(sum(BASELINE.get(n) != k.get(n) for n in BASELINE) <= 1 for k in found)


def test_the_baseline_is_predicted_first_and_what_cannot_be_predicted_is_left_out() -> None:
    found = screen(SPACE, BASELINE, lambda knobs: None if knobs["window"] else speed(knobs), count=200)
    assert found[0].knobs == BASELINE and found[0].predicted == 16
    assert not any(candidate.knobs["window"] for candidate in found) and 50 < len(found) < 200


def test_it_ends_when_that_is_enough() -> None:
    asked: list[Knobs] = []

    def predict(knobs: Knobs) -> float:
        asked.append(knobs)
        return speed(knobs)

    assert len(screen(SPACE, BASELINE, predict, enough=lambda: len(asked) > 10)) == 11 == len(asked)


def of_dtype(candidates: list[Candidate], chances: Mapping[str, float]) -> FloatArray:
    return np.array([chances[one.knobs["dtype"]] for one in candidates])


@pytest.mark.parametrize(
    ("case", "chances", "dtype"),
    [
        ("nothing is known of answers: the fastest", {"auto": 1, "int8": 1, "int4": 1}, "int4"),
        ("those of the fastest are known not to hold", {"auto": 1, "int8": 1, "int4": 0}, "int8"),
        ("those of the fastest hardly ever hold", {"auto": 1, "int8": 1, "int4": 0.01}, "int8"),
        ("only those of the baseline hold", {"auto": 1, "int8": 0, "int4": 0}, "auto"),
    ],
)
def test_the_fastest_whose_answers_may_hold_comes_first(case: str, chances: dict[str, float], dtype: str) -> None:
    candidates = screen(SPACE, BASELINE, speed, count=200)
    chosen = pick(candidates, of_dtype(candidates, chances), SPACE, {key(BASELINE)}, 16)
    assert chosen is not None and chosen.knobs["dtype"] == dtype, case
    assert chosen.predicted == max(one.predicted for one in candidates if one.knobs["dtype"] == dtype), case


def test_none_is_tried_again_nor_a_near_one() -> None:
    candidates = screen(SPACE, BASELINE, speed, count=200)
    chances, tried, chosen = np.ones(len(candidates)), {key(BASELINE)}, [candidates[0]]
    while (found := pick(candidates, chances, SPACE, tried, 16)) is not None:
        assert min(distance(SPACE, found.knobs, one.knobs) for one in chosen) >= NEAREST
        tried.add(key(found.knobs))
        chosen.append(found)
    assert 10 < len(chosen) < 200
    assert pick(candidates[:1], np.ones(1), SPACE, {key(BASELINE)}, 16) is None


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (BASELINE, BASELINE, 0.0),
        (BASELINE, {**BASELINE, "dtype": "int8"}, 1 / 5),
        ({**BASELINE, "seqs": 8}, {**BASELINE, "seqs": 64}, 1 / 5),
        (BASELINE, {**BASELINE, "seqs": 32}, (1 / 3) / 5),  # one of three doublings
        (BASELINE, {**BASELINE, "window": 256, "sinks": 4}, 2 / 6),
    ],
)
def test_distance_of_configurations(one: dict[str, Any], other: dict[str, Any], expected: float) -> None:
    assert distance(SPACE, one, other) == pytest.approx(expected) == distance(SPACE, other, one)


RISING = [(float(i), float(i)) for i in range(12)]


@pytest.mark.parametrize(
    ("name", "predicted", "measured", "spearman", "deserved"),
    [
        ("perfect", RISING, RISING, 1.0, True),
        ("too few to say", RISING[:11], RISING[:11], 1.0, None),
        ("one figure in reverse order", RISING, [(a, -b) for a, b in RISING], -1.0, False),
        ("a figure that is the same everywhere says nothing", RISING, [(a, 1.0) for a, _ in RISING], 1.0, True),
        ("nothing varies", RISING, [(1.0, 1.0)] * 12, None, None),
        # Two in a row swapped: 1 - 6 x 2 / (12 x 143).
        ("nearly", RISING, [RISING[1], RISING[0], *RISING[2:]], 1 - 12 / (12 * 143), True),
        # The first six of twelve in reverse order: 1 - 6 x 70 / 1716.
        ("not enough", RISING, [*reversed(RISING[:6]), *RISING[6:]], 1 - 420 / 1716, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_trust(name: str, predicted: Any, measured: Any, spearman: float | None, deserved: bool | None) -> None:
    found = trust(predicted, measured)
    assert found.spearman == (None if spearman is None else pytest.approx(spearman)) and found.deserved is deserved
    assert f"with {len(measured)} measured trials" in str(found)
