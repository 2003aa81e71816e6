"""Bounds over clusters: how often simulated samples' bounds hold the truth, and where they equal textbook ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from tests.fakes import cases
from tuner.scoring.clusters import clustered_share_bounds, mean_bounds

SAMPLES = 1000
CLUSTERS = 24


@pytest.mark.parametrize(
    "spread, least", cases([("no skew", 0.0, 0.93), ("some skew", 0.5, 0.91), ("skew of a KL divergence", 1.0, 0.87)])
)
def test_the_upper_bound_of_a_mean_holds_the_truth_as_often_as_it_says(spread: float, least: float) -> None:
    rng = np.random.default_rng(0)
    shape = (SAMPLES, CLUSTERS)
    samples = rng.lognormal(0.0, spread, shape) if spread else 1 + rng.normal(0.0, 0.3, shape)
    truth = np.exp(spread**2 / 2)
    held = np.mean([mean_bounds(sample)[1] >= truth for sample in samples])
    assert least <= held <= 0.98


@pytest.mark.parametrize("share, correlation", [(0.02, 0.01), (0.05, 0.05), (0.1, 0.1)])
def test_the_upper_bound_of_a_share_of_positions_holds_it_although_documents_differ(
    share: float, correlation: float
) -> None:
    rng = np.random.default_rng(0)
    weight = 1 / correlation - 1
    held = 0
    for _ in range(SAMPLES):
        sizes = rng.integers(24, 49, CLUSTERS)
        hits = rng.binomial(sizes, rng.beta(share * weight, (1 - share) * weight, CLUSTERS))
        held += clustered_share_bounds(hits, sizes)[1] >= share
    assert 0.91 <= held / SAMPLES <= 0.99


def test_one_position_a_document_is_clopper_pearson_but_for_the_degrees_of_freedom() -> None:
    hits = [1] * 6 + [0] * 54
    low, high = clustered_share_bounds(hits, [1] * 60)
    exact = [binomtest(6, 60, alternative=side).proportion_ci(0.95, "exact") for side in ("greater", "less")]
    assert (low, high) == pytest.approx((exact[0].low, exact[1].high), abs=0.002)


@pytest.mark.parametrize("hits, side", cases([("none", 0, 0), ("all", 36, 1)]))
def test_no_exception_seen_proves_less_than_as_many_independent_positions_would(hits: int, side: int) -> None:
    bounds = clustered_share_bounds([hits] * 24, [36] * 24)
    proven = abs(side - bounds[1 - side])
    assert bounds[side] == side and 1 - 0.05 ** (1 / (24 * 36)) < proven < 1 - 0.05 ** (1 / 24)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30))
def test_the_bounds_enclose_the_mean(values: list[float]) -> None:
    low, high = mean_bounds(values)
    assert low - 1e-9 <= np.mean(values) <= high + 1e-9
