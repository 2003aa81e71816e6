"""The paired difference of two configurations: against scipy's bootstrap, and how often its interval is right."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import bootstrap

from tests.tuner.builders import answered, failed
from tuner.scoring.paired import block_length, good_differences, mean_difference
from tuner.scoring.slo import SLO

SLOS = {"chat": SLO(ttft=0.5)}


def _chain(rng: np.random.Generator, n: int, share: float, r: float) -> npt.NDArray[np.float64]:
    """Zeros and ones, a stationary Markov chain: share of ones, autocorrelation r at lag 1."""
    values = [float(rng.random() < share)]
    for draw in rng.random(n - 1):
        values.append(float(draw < share + r * (values[-1] - share)))
    return np.array(values)


def test_the_difference_is_of_the_same_requests_whatever_their_order() -> None:
    before = [answered(0.4, name="a"), answered(0.6, name="b", scheduled=1.0), failed(name="c", scheduled=2.0)]
    after = [answered(0.4, name="c", scheduled=2.0), answered(0.9, name="a"), answered(0.7, name="b", scheduled=1.0)]
    assert good_differences([before], [after], SLOS).tolist() == [[-1.0, 0.0, 1.0]]
    with pytest.raises(AssertionError, match="other requests"):
        good_differences([before], [after[:2]], SLOS)


@pytest.mark.parametrize(("n", "up", "down"), [(60, 0.3, 0.1), (300, 0.1, 0.0), (300, 0.02, 0.05)])
def test_it_is_scipys_bootstrap_where_requests_are_independent(n: int, up: float, down: float) -> None:
    rng = np.random.default_rng(7)
    values = rng.choice([1.0, -1.0, 0.0], p=[up, down, 1 - up - down], size=n)
    ours = mean_difference(values[None], block=1, samples=9000)
    theirs = bootstrap(
        (values,), np.mean, n_resamples=9000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.06 * values.std())


def test_where_no_request_differs_the_interval_is_of_none_among_so_many() -> None:
    found = mean_difference(np.zeros((2, 100)))
    assert (found.value, found.low, found.high) == (
        0.0,
        pytest.approx(-0.0362, abs=1e-4),
        pytest.approx(0.0362, abs=1e-4),
    )


def test_a_block_is_as_long_as_the_correlation_asks() -> None:
    rng = np.random.default_rng(3)
    lengths = [block_length(_chain(rng, 400, 0.3, r)[None]) for r in (0.0, 0.5, 0.8)]
    assert lengths[0] <= 3 < lengths[1] < lengths[2] <= 60
    assert block_length(np.array([[0.0, 0.0, 1.0]])) == 1


@pytest.mark.parametrize(("r", "least", "most"), [(0.0, 0.90, 0.99), (0.5, 0.88, 0.98)])
def test_the_interval_holds_the_true_difference_as_often_as_it_says(r: float, least: float, most: float) -> None:
    rng = np.random.default_rng(11)
    held = 0
    for _ in range(200):
        found = mean_difference((_chain(rng, 300, 0.35, r) - 0.2)[None], samples=500)
        held += found.low <= 0.15 <= found.high
    assert least <= held / 200 <= most


def test_rounds_that_disagree_widen_it() -> None:
    same = np.tile(np.array([1.0, 0.0, 0.0, 0.0] * 50), (2, 1))
    moody = np.vstack([np.array([1.0, 0.0] * 100), np.zeros(200)])
    agreed, disagreed = mean_difference(same), mean_difference(moody)
    assert agreed.value == disagreed.value == 0.25
    assert disagreed.high - disagreed.low > 2 * (agreed.high - agreed.low)
