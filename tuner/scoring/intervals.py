"""Exact binomial bounds, shared by SLO attainment and answer quality, and what correlated requests are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import betaincinv

CONFIDENCE = 0.95


def proportion_interval(successes: float, trials: float) -> tuple[float, float]:
    """Two-sided 95 % Clopper-Pearson interval of a share; (0, 1) when nothing was tried.

    Source: Clopper and Pearson, Biometrika 26 (1934): quantiles of the beta distribution, which take counts that are
    no integers (see effective_size).
    """
    tail = (1 - CONFIDENCE) / 2
    return _lower(successes, trials, tail), 1.0 - _lower(trials - successes, trials, tail)


def proportion_lower(successes: float, trials: float) -> float:
    """One-sided 95 % Clopper-Pearson lower bound of a share; 0 when nothing was tried."""
    return _lower(successes, trials, 1 - CONFIDENCE)


def _lower(successes: float, trials: float, tail: float) -> float:
    assert 0 <= successes <= trials, f"{successes} of {trials}"
    if successes == 0:
        return 0.0
    return float(betaincinv(successes, trials - successes + 1, tail))


def effective_size(values: Sequence[float]) -> float:
    """How many independent values tell as much about their mean as these do, 1 to n; values in the order of time.

    n (1 - r) / (1 + r), r the autocorrelation at lag 1 with Kendall's correction of its bias (Biometrika 41, 1954) and
    at least 0: exact for a Markov chain of goods and bads. Values that do not vary show no correlation.
    """
    n = len(values)
    deviations = np.asarray(values, dtype=float) - np.mean(values) if n else np.empty(0)
    variance = float(deviations @ deviations)
    if n < 3 or variance == 0.0:
        return float(n)
    r = float(deviations[1:] @ deviations[:-1]) / variance
    r += (1 + 4 * r) / n
    return max(n * (1 - r) / (1 + r), 1.0) if 0 < r < 1 else float(n) if r <= 0 else 1.0
