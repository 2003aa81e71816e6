"""What each knob does, against functions whose Sobol indices are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.fakes import cases
from tuner.anova import FEWEST, Anova, analyse

KNOBS: dict[str, tuple[Any, ...]] = {
    "seqs": tuple(range(16, 64)),
    "dtype": ("auto", "int8", "fp8"),
    "chunk": (None, 32, 64),
    "idle": tuple(range(1000)),
}
DTYPE = {"auto": 0.0, "int8": 1.0, "fp8": -1.0}


def sampled(count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{name: values[rng.integers(len(values))] for name, values in KNOBS.items()} for _ in range(count)]


def truth(row: dict[str, Any], joint: float = 0.0) -> float:
    """Variances over the levels: seqs 1 (uniform over a width of sqrt(12)), dtype 2/3 of 1.5 squared = 1.5, and, with
    `joint`, of the product of dtype and a centred chunk."""
    line = (row["seqs"] - 39.5) / 48 * 12**0.5
    return 10 + line + 1.5 * DTYPE[row["dtype"]] + joint * DTYPE[row["dtype"]] * ((row["chunk"] is None) - 1 / 3)


def fitted(count: int, joint: float = 0.0, noise: float = 0.2, seed: int = 0) -> Anova:
    rows, rng = sampled(count, seed), np.random.default_rng(seed + 1)
    found = analyse(rows, [truth(row, joint) + noise * rng.standard_normal() for row in rows])
    assert found is not None
    return found


def test_shares_are_the_sobol_indices() -> None:
    found = fitted(300, joint=2.0)
    variances = {"seqs": 1.0, "dtype": 1.5, "both": 4 * (2 / 3) * (2 / 9)}
    alone = {effect.knob: effect for effect in found.effects}
    for knob in ("seqs", "dtype"):
        assert alone[knob].share == pytest.approx(variances[knob] / sum(variances.values()), abs=0.04)
    assert alone["idle"].share < 0.01 and alone["chunk"].share < 0.01
    strongest = found.interactions[0]
    assert set(strongest.knobs) == {"dtype", "chunk"}
    assert strongest.share == pytest.approx(variances["both"] / sum(variances.values()), abs=0.04)
    assert found.mean == pytest.approx(10, abs=0.1) and found.predicted > 0.95


def test_effects_are_within_their_errors_as_often_as_they_say() -> None:
    """Of the levels of a word over 40 studies of 30 trials each; 95 % by design, for priors that are not quite true."""
    inside = []
    for seed in range(40):
        (dtype,) = [effect for effect in fitted(30, seed=seed).effects if effect.knob == "dtype"]
        inside += [
            abs(found - 1.5 * DTYPE[level]) <= 1.96 * error
            for level, found, error in zip(dtype.levels, dtype.effect, dtype.error, strict=True)
        ]
    assert 0.88 <= np.mean(inside) <= 1.0


def test_a_knob_that_does_nothing_is_said_to_be_uncertain_at_few_trials() -> None:
    found = fitted(12, noise=3.0)
    assert found.predicted < 0.5
    assert all(effect.share_low < 0.3 for effect in found.effects if effect.knob in ("idle", "chunk"))


def test_levels_are_in_order_and_a_missing_knob_is_a_level() -> None:
    rows = [{"a": i % 3, "b": ("x", None)[i % 2], **({"c": 4} if i % 2 else {})} for i in range(24)]
    found = analyse(rows, [float(row["a"]) for row in rows])
    assert found is not None
    assert {effect.knob: effect.levels for effect in found.effects} == {
        "a": (0, 1, 2),
        "b": ("x", None),
        "c": (4, None),
    }
    (a,) = [effect for effect in found.effects if effect.knob == "a"]
    assert found.mean + np.array(a.effect) == pytest.approx([0, 1, 2], abs=0.05)


NOTHING_TO_TELL: list[tuple[str, list[dict[str, Any]], list[float]]] = [
    ("no trial", [], []),
    ("too few trials", [{"a": i} for i in range(FEWEST - 1)], [float(i) for i in range(FEWEST - 1)]),
    ("a number that never changes", [{"a": i} for i in range(20)], [1.0] * 20),
    ("knobs that never change", [{"a": 1}] * 20, [float(i) for i in range(20)]),
    ("no knobs", [{}] * 20, [float(i) for i in range(20)]),
]


@pytest.mark.parametrize(("rows", "values"), cases(NOTHING_TO_TELL))
def test_nothing_to_tell(rows: list[dict[str, Any]], values: list[float]) -> None:
    assert analyse(rows, values) is None


def test_a_thousand_trials_are_thinned_and_the_same_is_said_again() -> None:
    found = fitted(1000)
    assert found.observations == 300
    assert found == fitted(1000)
