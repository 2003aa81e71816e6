"""Where a noisy yes turns into a no: a threshold found by the fewest trials, with an interval.

The answer at level x is yes with probability P(x) = e + (1 - 2e) Phi((ln t - ln x) / s): a probit curve that falls from
yes to no around the threshold t, with noise s of the threshold from trial to trial, and with lapses e that have nothing
to do with x. The posterior of (t, s) lies on a grid, and each level is the one whose answer is expected to narrow that
of t the most. Source: Kontsevich and Tyler, "Bayesian adaptive estimation of psychometric slope and threshold", Vision
Research 39 (1999).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, xlogy

Floats = npt.NDArray[np.float64]

LAPSE = 0.02
"""Share of the trials that go wrong at any level: a slow moment of the machine, or a lucky one."""
STEP = 0.01
"""Of the grid of thresholds: 1 %."""
NOISE = np.geomspace(0.01, 0.64, 9)
"""Relative noise of the threshold from trial to trial."""
NOISE_PRIOR = np.exp(-0.5 * np.log(NOISE / 0.05) ** 2)
"""How likely each is before the first trial: log-normal around 5 %, a factor of e either way within one deviation."""
QUANTILES = np.linspace(0.01, 0.99, 25)
"""Levels that are considered for a trial, as quantiles of the threshold."""
TAIL = 0.025


@dataclass(frozen=True, slots=True)
class Estimate:
    """Median of the threshold, and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """By how much `high` lies above `low`, relative to it."""
        return self.high / self.low - 1


class Threshold:
    """What trials have told of a threshold that lies, as likely anywhere in ratio, between `least` and `most`."""

    def __init__(self, least: float, most: float) -> None:
        assert 0 < least < most, f"{least} to {most}"
        self._logs = np.arange(np.log(least), np.log(most) + STEP, STEP)
        self._weights = np.outer(np.full(len(self._logs), 1 / len(self._logs)), NOISE_PRIOR / NOISE_PRIOR.sum())

    def add(self, level: float, yes: bool) -> None:
        """Take in the answer of one trial."""
        chance = self._chance(np.array([np.log(level)]))[0]
        self._weights = self._weights * (chance if yes else 1 - chance)
        self._weights /= self._weights.sum()

    def estimate(self) -> Estimate:
        """The threshold as known now."""
        low, middle, high = self._quantiles(np.array([TAIL, 0.5, 1 - TAIL])).tolist()
        # The grid's own width is part of what is unknown.
        return Estimate(math.exp(middle), math.exp(low - STEP), math.exp(high + STEP))

    def next_level(self) -> float:
        """The level whose answer is expected to leave the least entropy of the threshold."""
        levels = np.unique(self._quantiles(QUANTILES))
        # Levels, thresholds, noise; then the noise is summed out.
        yes = np.einsum("ltn,tn->lt", self._chance(levels), self._weights)
        no = self._weights.sum(axis=1) - yes
        # The entropy of each posterior, weighted by the probability of its answer.
        expected = sum(xlogy(p.sum(axis=1), p.sum(axis=1)) - xlogy(p, p).sum(axis=1) for p in (yes, no))
        return float(np.exp(levels[np.argmin(expected)]))

    def _chance(self, levels: Floats) -> Floats:
        """Probability of yes; shape [levels, thresholds, noise]."""
        distance = self._logs[None, :, None] - levels[:, None, None]
        chance: Floats = LAPSE + (1 - 2 * LAPSE) * ndtr(distance / NOISE)
        return chance

    def _quantiles(self, shares: Floats) -> Floats:
        """Of ln threshold."""
        cumulated = np.cumsum(self._weights.sum(axis=1))
        return self._logs[np.minimum(np.searchsorted(cumulated, shares), len(self._logs) - 1)]
