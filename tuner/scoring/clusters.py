"""Bounds of means and shares of what comes in clusters: the positions of a document. Clusters are independent."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from tuner.scoring.intervals import CONFIDENCE, proportion_lower

ASSUMED_CORRELATION = 0.2
"""Between positions of one cluster, where the data show none because no position, or every one, has the property."""


def mean_bounds(values: npt.ArrayLike) -> tuple[float, float]:
    """One-sided 95 % lower and upper bounds of a mean over clusters, corrected for the skew of the sample.

    values: one number a cluster, two or more. Source: Hall, J. R. Stat. Soc. B 54 (1992), the cubic transformation
    of Student's t; without skew it is Student's interval.
    """
    x = np.asarray(values, dtype=np.float64)
    n, mean, spread = len(x), float(x.mean()), float(x.std(ddof=1))
    if spread <= 1e-12 * max(abs(mean), 1e-12):
        return mean, mean
    skew = float(((x - mean) ** 3).mean()) / float(x.std()) ** 3
    quantile = float(student_t.ppf(CONFIDENCE, n - 1)) / math.sqrt(n)
    # The upper bound comes from the lower tail of the statistic.
    return mean - spread * _unskewed(quantile, skew, n), mean - spread * _unskewed(-quantile, skew, n)


def _unskewed(quantile: float, skew: float, n: int) -> float:
    """Inverse of Hall's transformation, divided by sqrt(n)."""
    if abs(skew) < 1e-6:
        return quantile
    return 3.0 / skew * (float(np.cbrt(1.0 + skew * (quantile - skew / (6 * n)))) - 1.0)


def clustered_share_bounds(successes: npt.ArrayLike, sizes: npt.ArrayLike) -> tuple[float, float]:
    """One-sided 95 % lower and upper bounds of a share of positions, by clusters: successes among sizes of each.

    Clopper-Pearson with the number of positions divided by the design effect (variance of the ratio estimator over
    the binomial one), adjusted for the degrees of freedom; two clusters or more. Source: Korn and Graubard, Survey
    Methodology 24 (1998).
    """
    hits, counts = np.asarray(successes, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    n, total = len(hits), float(counts.sum())
    share = float(hits.sum()) / total
    if 0 < share < 1:
        variance = n / (n - 1) * float(((hits - share * counts) ** 2).sum()) / total**2
        effective = min(share * (1 - share) / variance, total) if variance > 0 else total
        effective *= (float(student_t.ppf(CONFIDENCE, max(total - 1, 1)) / student_t.ppf(CONFIDENCE, n - 1))) ** 2
    else:
        effective = total / (1 + ASSUMED_CORRELATION * max(total / n - 1, 0))
    hit, missed = share * effective, (1 - share) * effective
    return proportion_lower(hit, effective), 1.0 - proportion_lower(missed, effective)
