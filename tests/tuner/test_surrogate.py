"""The model of the search: what it learns of each knob, how sure it says it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import norm

from search_spaces.space import load_space
from tuner import surrogate
from tuner.proposals import expected_improvement, ln_capacities
from tuner.surrogate import APART, correlations, encode, fit

SPACE = load_space(
    {
        "parameters": {
            "seqs": {"type": "int", "low": 4, "high": 64, "log": True},
            "rate": {"type": "float", "low": 0.0, "high": 2.0},
            "window": {"type": "choice", "choices": [None, 128, 256, 1024]},
            "sinks": {"type": "int", "low": 0, "high": 8, "when": {"window": "not_null"}},
            "dtype": {"type": "choice", "choices": ["auto", "int8"]},
        }
    }
)


def knobs(**changed: Any) -> dict[str, Any]:
    return SPACE.active({"seqs": 16, "rate": 1.0, "window": 128, "sinks": 4, "dtype": "auto"} | changed)


def test_numbers_lie_on_a_scale_and_categories_apart() -> None:
    assert encode(SPACE, knobs()) == [0.5, 0.5, 0.0, 0.5, APART]
    assert encode(SPACE, knobs(window=256))[2] == 0.5
    without = encode(SPACE, knobs(window=None))
    assert without[3] < 0, "a knob that does nothing is none of its values"
    pairs = correlations(np.array([without]), np.array([encode(SPACE, knobs()), without]))[:, 0, :]
    assert pairs[:, 1].tolist() == [1.0] * 5 and pairs[2:4, 0].max() < 1e-9


def test_the_gradient_is_that_of_the_loss() -> None:
    rng = np.random.default_rng(1)
    points, values = rng.random((12, 3)), rng.standard_normal(12)
    for theta in rng.standard_normal((3, 4)):
        given = (correlations(points, points), values, rng.random(12) + 0.5)
        numeric = approx_fprime(theta, lambda at, given=given: surrogate._loss(at, *given)[0], 1e-6)
        assert surrogate._loss(theta, *given)[1] == pytest.approx(numeric, rel=1e-3, abs=1e-4)


def test_an_additive_truth_is_learned_from_few_points_and_idle_knobs_are_told() -> None:
    """Three knobs of 4, 3 and 3 values, of which the last does nothing: 14 of 36 configurations tell the rest."""
    rng = np.random.default_rng(0)
    grid = np.array([[a / 3, APART * b, APART * c] for a in range(4) for b in (1, 2, 3) for c in (1, 2, 3)])
    truth = np.sin(2 * grid[:, 0]) + 0.5 * (grid[:, 1] / APART)
    chosen = rng.permutation(len(grid))[:14]
    model = fit(grid[chosen], truth[chosen] + 0.01 * rng.standard_normal(14))
    left = np.setdiff1d(np.arange(len(grid)), chosen)
    means, deviations = model.predict(grid[left])
    assert np.corrcoef(means, truth[left])[0, 1] > 0.97
    assert np.mean(np.abs(means - truth[left]) < 2 * deviations + 0.02) > 0.9
    assert model.weights[2] < min(model.weights[:2])


def test_vague_values_weigh_less() -> None:
    points, values = np.array([[0.0], [0.0], [1.0]]), np.array([0.0, 1.0, 0.5])
    near = fit(points, values, [1.0, 50.0, 1.0]).predict(points[:1])[0][0]
    assert near < fit(points, values, [50.0, 1.0, 1.0]).predict(points[:1])[0][0]


def test_expected_improvement_is_the_mean_of_what_exceeds_the_best() -> None:
    draws = norm(0.3, 0.7).ppf((np.arange(200_000) + 0.5) / 200_000)
    found = expected_improvement(np.array([0.3]), np.array([0.7]), 0.5)[0]
    assert found == pytest.approx(np.maximum(draws - 0.5, 0).mean(), rel=1e-3)


def test_a_capacity_lies_within_its_bracket_or_beyond_the_replay() -> None:
    climbs = [
        [(2.0, -0.3), (2.3, 0.3)],
        [(2.0, -0.3), (2.3, -0.1), (2.6, 0.3)],
        [(2.0, 0.6)],
        [(2.0, -0.6)],
    ]
    values, vagueness = ln_capacities(climbs)
    assert values[0] == pytest.approx((math.log(2.0) + math.log(2.3)) / 2)
    assert math.log(2.3) < values[1] < math.log(2.6)
    assert values[2] < math.log(2.0) < values[3]
    assert vagueness[0] == vagueness[1] == 1.0 < vagueness[2]
