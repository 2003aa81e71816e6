"""Exact binomial bounds, shared by SLO attainment and answer quality."""

from __future__ import annotations

from scipy.stats import beta

CONFIDENCE = 0.95


def proportion_interval(successes: int, trials: int) -> tuple[float, float]:
    """Two-sided 95 % Clopper-Pearson interval of a share; (0, 1) when nothing was tried.

    Source: Clopper and Pearson, Biometrika 26 (1934): quantiles of the beta distribution.
    """
    tail = (1 - CONFIDENCE) / 2
    return _lower(successes, trials, tail), 1.0 - _lower(trials - successes, trials, tail)


def proportion_lower(successes: int, trials: int) -> float:
    """One-sided 95 % Clopper-Pearson lower bound of a share; 0 when nothing was tried."""
    return _lower(successes, trials, 1 - CONFIDENCE)


def _lower(successes: int, trials: int, tail: float) -> float:
    assert 0 <= successes <= trials, f"{successes} of {trials}"
    if successes == 0:
        return 0.0
    return float(beta.ppf(tail, successes, trials - successes + 1))
