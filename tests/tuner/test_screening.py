"""Screening: a spread of candidates, a diverse few in order, and whether they deserve to be followed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from search_spaces.space import ChoiceParameter, FloatParameter, IntParameter, SearchSpace, key
from tuner.screening import Knobs, distance, drawn, neighbours, screen, trust

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


def dtype(knobs: Knobs) -> str:
    return str(knobs["dtype"])


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


def test_the_best_of_each_kind_of_answers_are_proposed_in_turn() -> None:
    found = screen(SPACE, BASELINE, speed, dtype, candidates=200, proposals=6)
    assert [candidate.group for candidate in found.proposals] == ["int4", "int8", "auto"] * 2
    assert found.baseline == 16 and found.predicted == 200
    for name in ("auto", "int8", "int4"):
        best, second = (c for c in found.proposals if c.group == name)
        assert best.predicted == max(speed(k) for k in drawn(SPACE, BASELINE, 0, 200) if k["dtype"] == name)
        assert best.predicted >= second.predicted and distance(SPACE, best.knobs, second.knobs) >= 0.08


def test_nothing_worse_than_the_baseline_and_nothing_whose_answers_are_known_to_be_bad() -> None:
    found = screen(SPACE, BASELINE, speed, dtype, candidates=200, proposals=200, excluded={"int4"})
    assert {candidate.group for candidate in found.proposals} == {"auto", "int8"}
    assert min(candidate.predicted for candidate in found.proposals) > 16
    assert not screen(SPACE, BASELINE, lambda knobs: 1.0, dtype).proposals


def test_what_cannot_be_predicted_is_not_proposed() -> None:
    found = screen(SPACE, BASELINE, lambda knobs: None if knobs["window"] else speed(knobs), dtype, candidates=100)
    assert found.proposals and not any(candidate.knobs["window"] for candidate in found.proposals)


def test_it_ends_when_that_is_enough() -> None:
    asked: list[Knobs] = []

    def predict(knobs: Knobs) -> float:
        asked.append(knobs)
        return speed(knobs)

    assert screen(SPACE, BASELINE, predict, dtype, enough=lambda: len(asked) > 10).predicted == 10


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
