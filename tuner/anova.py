"""What each knob does to a measured number: a functional analysis of variance by a Gaussian process.

The number is a constant, plus a function of each knob, plus a function of each pair of knobs, plus noise. Each function
has a Gaussian-process prior whose kernel integrates to zero over the knob's levels: effects and interactions are then
told apart, and their posteriors are closed forms. Source: Durrande, Ginsbourger, Roustant and Carraro, "ANOVA kernels
and RKHS of zero mean functions for model-based sensitivity analysis", J. Multivariate Analysis 115 (2013).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

FloatArray = npt.NDArray[np.float64]
MOST_LEVELS = 10
"""A number with more values than this is cut into as many bins of about equal counts."""
FEW_LEVELS = 4
"""A number with at most as many values is taken as words: nothing is assumed between them."""
LENGTH = 0.4
"""Length scale over the ranks of a number's levels, 0 to 1."""
FEWEST = 8
MOST_ROWS = 300
"""Of more observations, so many are taken, evenly spaced."""
DRAWS = 400
CONSTANT = 100.0
"""Prior variance of the constant, in variances of the number."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One knob. levels: values, a bin's median, in order (numbers, words, then None for none). effect: what the level
    adds to the mean over all levels, with its standard error; the number's unit. share: of the explained variance,
    with its 95 % interval."""

    knob: str
    levels: tuple[Any, ...]
    effect: tuple[float, ...]
    error: tuple[float, ...]
    share: float
    share_low: float
    share_high: float


@dataclass(frozen=True, slots=True)
class Interaction:
    """What two knobs do together beyond what each does alone; effect: [levels of first, levels of second]."""

    knobs: tuple[str, str]
    effect: tuple[tuple[float, ...], ...]
    share: float
    share_low: float
    share_high: float


@dataclass(frozen=True, slots=True)
class Anova:
    """mean: of the number over all levels. predicted: share of the variance of an observation that the others predict
    (leave-one-out R squared); near 0 or below, there is too little to tell. Effects and interactions by share."""

    observations: int
    mean: float
    predicted: float
    effects: tuple[Effect, ...]
    interactions: tuple[Interaction, ...]


@dataclass(frozen=True, slots=True)
class _Knob:
    """levels, kernel over them (centred), and the level of each observation."""

    name: str
    levels: tuple[Any, ...]
    kernel: FloatArray
    place: npt.NDArray[np.intp]

    @property
    def observed(self) -> FloatArray:
        return self.kernel[np.ix_(self.place, self.place)]


def analyse(rows: Sequence[Mapping[str, Any]], values: Sequence[float]) -> Anova | None:
    """rows: the knobs of each observation; a knob that a row lacks is a level of its own (None). values: finite.

    None where there are fewer than FEWEST observations, nothing varies, or the number does not.
    """
    if len(values) > MOST_ROWS:
        kept = np.linspace(0, len(values) - 1, MOST_ROWS).round().astype(int)
        rows, values = [rows[i] for i in kept], [values[i] for i in kept]
    target = np.asarray(values, dtype=np.float64)
    knobs = [_knob(name, [row.get(name) for row in rows]) for name in dict.fromkeys(n for row in rows for n in row)]
    knobs = [knob for knob in knobs if len(knob.levels) > 1]
    if len(target) < FEWEST or not knobs or np.ptp(target) == 0.0:
        return None
    spread = float(target.std())
    return _Posterior(knobs, (target - target.mean()) / spread).anova(float(target.mean()), spread)


def _knob(name: str, values: Sequence[Any]) -> _Knob:
    numbers = sorted({value for value in values if _number(value)})
    binned = {value: value for value in values}
    if len(numbers) > MOST_LEVELS:
        counted = np.array(sorted(value for value in values if _number(value)), dtype=np.float64)
        for part in np.array_split(np.array(numbers), MOST_LEVELS) if len(counted) else ():
            middle = float(np.median(part))
            binned |= dict.fromkeys(part.tolist(), int(middle) if middle.is_integer() else middle)
    levels = tuple(sorted(set(binned.values()), key=order))
    ranked = [level for level in levels if _number(level)]
    ordinal = len(ranked) > FEW_LEVELS
    kernel = np.eye(len(levels))
    for i, j in combinations(range(len(ranked)), 2) if ordinal else ():
        kernel[i, j] = kernel[j, i] = np.exp(-0.5 * ((i - j) / (len(ranked) - 1) / LENGTH) ** 2)
    sums = kernel.sum(axis=1)
    kernel = kernel - np.outer(sums, sums) / sums.sum()
    scale = float(np.trace(kernel)) / len(levels) or 1.0
    return _Knob(name, levels, kernel / scale, np.array([levels.index(binned[value]) for value in values]))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then words, then none."""
    if value is None:
        return (2, 0.0, "")
    return (0, float(value), "") if _number(value) else (1, 0.0, str(value))


class _Posterior:
    """The fitted process. target: standardised."""

    def __init__(self, knobs: Sequence[_Knob], target: FloatArray) -> None:
        self._knobs, self._target = knobs, target
        self._single = sum((knob.observed for knob in knobs), np.zeros((len(target), len(target))))
        self._double = np.zeros_like(self._single)
        for one, other in combinations(knobs, 2):
            self._double += one.observed * other.observed
        start = np.log([0.5 / len(knobs), 0.1 / max(len(knobs), 1) ** 2, 0.3])
        found = minimize(self._loss, start, method="Nelder-Mead", options={"maxfev": 120, "xatol": 0.02, "fatol": 0.02})
        self._one, self._two, self._noise = np.exp(np.clip(found.x, -9.0, 3.0)).tolist()
        self._inverse = np.linalg.inv(self._covariance(self._one, self._two, self._noise))
        self._weights = self._inverse @ target

    def _covariance(self, one: float, two: float, noise: float) -> FloatArray:
        return CONSTANT + one * self._single + two * self._double + noise * np.eye(len(self._target))

    def _loss(self, logs: FloatArray) -> float:
        """Negative log marginal likelihood, with a weak prior that keeps the variances within reason."""
        factor = cho_factor(self._covariance(*np.exp(np.clip(logs, -9.0, 3.0))), lower=True)
        fit = self._target @ cho_solve(factor, self._target)
        return float(0.5 * fit + np.log(np.diag(factor[0])).sum() + 0.02 * ((logs + 2.0) ** 2).sum())

    def anova(self, mean: float, spread: float) -> Anova:
        rng = np.random.default_rng(0)
        singles = [self._component(self._one, knob.kernel, knob.kernel[:, knob.place]) for knob in self._knobs]
        pairs = list(combinations(self._knobs, 2))
        doubles = [self._pair(one, other) for one, other in pairs]
        drawn = [_variances(*component, rng) for component in (*singles, *doubles)]
        shares = np.array(drawn) / np.maximum(np.sum(drawn, axis=0), 1e-12)
        told = [tuple(np.percentile(share, [50, 2.5, 97.5]).tolist()) for share in shares]
        errors = [np.sqrt(np.maximum(np.diag(covariance), 0.0)) * spread for _, covariance in singles]
        effects = [
            Effect(knob.name, knob.levels, tuple((at * spread).tolist()), tuple(error.tolist()), *share)
            for knob, (at, _), error, share in zip(self._knobs, singles, errors, told[: len(singles)], strict=True)
        ]
        interactions = [
            Interaction((one.name, other.name), _table(at * spread, len(one.levels)), *share)
            for (one, other), (at, _), share in zip(pairs, doubles, told[len(singles) :], strict=True)
        ]
        residuals = self._weights / np.diag(self._inverse)
        return Anova(
            observations=len(self._target),
            mean=mean + spread * CONSTANT * float(self._weights.sum()),
            predicted=1.0 - float(residuals @ residuals) / float(self._target @ self._target),
            effects=tuple(sorted(effects, key=lambda effect: -effect.share)),
            interactions=tuple(sorted(interactions, key=lambda one: -one.share)),
        )

    def _component(self, scale: float, kernel: FloatArray, cross: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Posterior mean and covariance of one component over its levels. cross: kernel of levels and observations."""
        covariance = scale * kernel - scale**2 * cross @ self._inverse @ cross.T
        return scale * cross @ self._weights, covariance

    def _pair(self, one: _Knob, other: _Knob) -> tuple[FloatArray, FloatArray]:
        """The same of an interaction, over all pairs of levels, the second knob's changing fastest."""
        cross = one.kernel[:, None, one.place] * other.kernel[None, :, other.place]
        kernel: FloatArray = np.kron(one.kernel, other.kernel).astype(np.float64)
        return self._component(self._two, kernel, cross.reshape(len(kernel), -1))


def _variances(mean: FloatArray, covariance: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draws of the component's variance over its levels."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    draws = mean[:, None] + root @ rng.standard_normal((len(mean), DRAWS))
    return np.asarray((draws**2).mean(axis=0))


def _table(values: FloatArray, rows: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.reshape(rows, -1).tolist())
