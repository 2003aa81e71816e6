"""A regression of what was measured on the knobs, with its doubt: Gaussian process with an ANOVA kernel.

k(x, y) = s2 * prod over knobs d of (1 + w_d * c_d(x, y)) / (1 + w_d). Multiplied out it is a sum over all sets of
knobs: main effects, pairs, and so on, each order weaker than the one before where w is small, so that a few trials
already teach what each knob does by itself (ANOVA kernels: Durrande et al., J. Multivariate Analysis 115, 2013). w_d
is fitted: a knob without effect ends near 0. c_d is exp(-DECAY * distance²) along a scale of numbers, and 0 between
categories.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from search_spaces.space import ChoiceParameter, FloatParameter, IntParameter, Parameter, SearchSpace

FloatArray = npt.NDArray[np.float64]
DECAY = 4.0
"""Of correlation along a scale, exp(-DECAY * distance²): 0.64 at a third of it, 0.02 from one end to the other."""
APART = 30.0
"""Distance between two categories, and of a knob that does nothing from every value: no correlation."""
PRIOR_WEIGHT, PRIOR_WEIGHT_SD = math.log(0.5), 1.0
"""Of ln w_d, normal."""
PRIOR_NOISE, PRIOR_NOISE_SD = math.log(0.02), 1.5
"""Of ln (noise variance / s2), normal."""
FREEDOM = 3.0
"""Of Student's t in `fit_robust`."""
PRIOR_COUNT = 2.0
"""Observations that the prior variance of s2 (that of the data) counts for."""


def encode(space: SearchSpace, knobs: Mapping[str, Any]) -> list[float]:
    """A coordinate per parameter: [0, 1] along a scale of numbers, multiples of APART for categories and for a knob
    that does nothing."""
    return [_coordinate(p, knobs[name]) if name in knobs else -APART for name, p in space.parameters.items()]


def _coordinate(parameter: Parameter, value: Any) -> float:
    if isinstance(parameter, ChoiceParameter):
        numbers = sorted(float(choice) for choice in parameter.choices if _is_number(choice))
        if _is_number(value):
            return numbers.index(float(value)) / max(len(numbers) - 1, 1)
        same = (i for i, choice in enumerate(parameter.choices) if type(choice) is type(value) and choice == value)
        return APART * (1 + next(same))
    return _unit(parameter, value)


def _unit(parameter: IntParameter | FloatParameter, value: float) -> float:
    if parameter.high == parameter.low:
        return 0.0
    if parameter.log:
        return math.log(value / parameter.low) / math.log(parameter.high / parameter.low)
    return (value - parameter.low) / (parameter.high - parameter.low)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def correlations(left: FloatArray, right: FloatArray) -> FloatArray:
    """c_d of every pair: (n, d) and (m, d) coordinates to (d, n, m)."""
    return np.exp(-DECAY * (left.T[:, :, None] - right.T[:, None, :]) ** 2)


@dataclass(frozen=True, slots=True)
class Surrogate:
    """Fitted to points (n, d) and values (n,). weights: w_d (d,), the relevance of each knob. surprise (n,): each
    value's distance from what all others predict, in standard deviations (leave-one-out, Rasmussen and Williams,
    eq. 5.12)."""

    points: FloatArray
    weights: FloatArray
    variance: float
    mean: float
    surprise: FloatArray
    _factor: FloatArray
    _alpha: FloatArray

    def predict(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Means and standard deviations (m,) of the noise-free value at points (m, d)."""
        cross = _kernel(correlations(self.points, points), self.weights)
        half = solve_triangular(self._factor, cross, lower=True)
        left = np.maximum(1.0 - np.sum(half**2, axis=0), 1e-12)
        return self.mean + cross.T @ self._alpha, np.sqrt(self.variance * left)


def fit(points: FloatArray, values: FloatArray, vagueness: npt.ArrayLike | None = None) -> Surrogate:
    """The most probable weights and noise (MAP, L-BFGS from the prior's centre: the same data, the same answer).

    vagueness (n,): noise variance of each value relative to that of a plain one, 1 by default.
    """
    relative = np.ones(len(values)) if vagueness is None else np.asarray(vagueness, dtype=np.float64)
    mean, scale = float(np.mean(values)), float(np.std(values)) or 1.0
    target, pairs = (values - mean) / scale, correlations(points, points)
    start = np.array([PRIOR_WEIGHT] * points.shape[1] + [PRIOR_NOISE])
    bounds = [(-7.0, 4.0)] * points.shape[1] + [(-9.0, 2.0)]
    found = minimize(_loss, start, (pairs, target, relative), "L-BFGS-B", jac=True, bounds=bounds)
    weights, noise = np.exp(found.x[:-1]), math.exp(found.x[-1])
    factor = cholesky(_kernel(pairs, weights) + np.diag(noise * relative), lower=True)
    solved = cho_solve((factor, True), target)
    variance = (float(target @ solved) + PRIOR_COUNT) / (len(values) + PRIOR_COUNT)
    diagonal = np.diag(cho_solve((factor, True), np.eye(len(values))))
    surprise = solved / np.sqrt(variance * diagonal)
    return Surrogate(points, weights, variance * scale**2, mean, surprise, factor, solved * scale)


def fit_robust(points: FloatArray, values: FloatArray, vagueness: FloatArray) -> Surrogate:
    """`fit`, and once more with less weight for what was surprisingly low: a slow moment of the machine makes a replay
    worse, never better. The weights are those of Student's t with FREEDOM degrees (Lange et al., JASA 84, 1989)."""
    low = np.minimum(fit(points, values, vagueness).surprise, 0.0)
    return fit(points, values, vagueness * np.maximum((FREEDOM + low**2) / (FREEDOM + 1), 1.0))


def _kernel(pairs: FloatArray, weights: FloatArray) -> FloatArray:
    """Correlation (n, m) under the weights; 1 on the diagonal."""
    w = weights[:, None, None]
    return np.asarray(np.prod((1.0 + w * pairs) / (1.0 + w), axis=0), dtype=np.float64)


def _loss(theta: FloatArray, pairs: FloatArray, target: FloatArray, relative: FloatArray) -> tuple[float, FloatArray]:
    """Negative log posterior of (ln w, ln noise) with s2 integrated into its estimate, and its gradient."""
    weights, noise = np.exp(theta[:-1]), math.exp(theta[-1])
    kernel, diagonal = _kernel(pairs, weights), noise * relative
    factor = cholesky(kernel + np.diag(diagonal + 1e-9), lower=True)
    inverse = cho_solve((factor, True), np.eye(len(target)))
    solved = inverse @ target
    count = len(target) + PRIOR_COUNT
    misfit = float(target @ solved) + PRIOR_COUNT
    prior = np.append((theta[:-1] - PRIOR_WEIGHT) / PRIOR_WEIGHT_SD, (theta[-1] - PRIOR_NOISE) / PRIOR_NOISE_SD)
    loss = count / 2 * math.log(misfit) + float(np.sum(np.log(np.diag(factor)))) + float(prior @ prior) / 2
    change = 0.5 * inverse - count / (2 * misfit) * np.outer(solved, solved)
    w = weights[:, None, None]
    by_weight = np.sum(change * kernel * (w * pairs / (1 + w * pairs) - w / (1 + w)), axis=(1, 2))
    by_noise = float(np.sum(np.diag(change) * diagonal))
    scales = np.append(np.full(len(weights), PRIOR_WEIGHT_SD), PRIOR_NOISE_SD)
    return loss, np.append(by_weight, by_noise) + prior / scales
