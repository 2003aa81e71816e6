"""Screening: which configurations are worth measuring first, by a predictor that is cheap and may be wrong.

It orders and proposes, and never decides: what it proposes is measured like any other trial, and its predictions are
told to nobody. Of quality it knows nothing: whether answers hold is what the trials so far tell (pick). How far its
predictions deserve to be followed is measured during the study (trust).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import qmc, spearmanr

from search_spaces.space import ChoiceParameter, IntParameter, Parameter, SearchSpace, key
from tuner.proposals import expected_improvement
from tuner.surrogate import FloatArray

Knobs = dict[str, Any]
CANDIDATES = 256
NEAREST = 0.08
"""Two proposals are at least so far apart, as a mean over knobs of 0 (same) to 1 (other choice, other end)."""
ERROR = 0.15
"""Standard deviation of ln(capacity / predicted) (docs/simulator.md)."""
MIN_TRIALS = 12
"""Measured trials before a verdict (methods.md C6)."""
MIN_SPEARMAN = 0.8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration and the capacity that was predicted for it."""

    knobs: Knobs
    predicted: float


def screen(
    space: SearchSpace,
    baseline: Mapping[str, Any],
    predict: Callable[[Knobs], float | None],
    *,
    seed: int = 0,
    count: int = CANDIDATES,
    enough: Callable[[], bool] = lambda: False,
) -> list[Candidate]:
    """Predictions for the baseline, which comes first, and for many configurations of the space.

    predict: None where nothing can be said. enough: asked between predictions, ends them early.
    """
    found: list[Candidate] = []
    for knobs in (dict(baseline), *drawn(space, baseline, seed, count)):
        if found and enough():
            break
        if (value := predict(knobs)) is not None:
            found.append(Candidate(knobs, value))
    return found


def pick(
    candidates: Sequence[Candidate], chances: FloatArray, space: SearchSpace, tried: Collection[str], best: float
) -> Candidate | None:
    """The one to measure next: the largest expected improvement of ln capacity over `best`, times the probability that
    it runs and that its answers hold (chances). None nearer than NEAREST to one whose key was tried."""
    near = [one.knobs for one in candidates if key(one.knobs) in tried]
    logs = np.log([one.predicted for one in candidates])
    hopes = expected_improvement(logs, np.full(len(logs), ERROR), math.log(best)) * chances
    for index in np.argsort(-hopes, kind="stable"):
        if all(distance(space, candidates[index].knobs, other) >= NEAREST for other in near):
            return candidates[index]
    return None


def drawn(space: SearchSpace, baseline: Mapping[str, Any], seed: int, count: int) -> list[Knobs]:
    """`count` different configurations: the baseline with one knob at either end or at each choice, then evenly spread
    ones (Sobol, scrambled)."""
    found = {key(knobs): knobs for knobs in neighbours(space, baseline)}
    found.pop(key(baseline), None)
    names = list(space.parameters)
    points = qmc.Sobol(len(names), rng=seed).random_base2(max(math.ceil(math.log2(max(2 * count, 2))), 1))
    for point in points.tolist():
        if len(found) >= count:
            break
        values = {name: _at(space.parameters[name], x) for name, x in zip(names, point, strict=True)}
        knobs = dict(space.active(values))
        if key(knobs) != key(baseline):
            found.setdefault(key(knobs), knobs)
    return list(found.values())[:count]


def neighbours(space: SearchSpace, baseline: Mapping[str, Any]) -> list[Knobs]:
    """The baseline with one knob changed, and what that makes active at its least."""
    found = []
    for name in baseline:
        parameter = space.parameters[name]
        values = parameter.choices if isinstance(parameter, ChoiceParameter) else (parameter.low, parameter.high)
        for value in values:
            found.append(dict(space.active({**space.least(), **baseline, name: value})))
    return found


def distance(space: SearchSpace, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """0 for the same knobs to 1 (Gower): the mean over those active in either; an inert one differs from any value."""
    names = {*one, *other}
    return statistics.fmean(
        _apart(space.parameters[n], one[n], other[n]) if n in one and n in other else 1 for n in names
    )


@dataclass(frozen=True, slots=True)
class Trust:
    """Whether predictions deserve to be followed. spearman: the least over the figures compared, None if none varies.
    trials: how many were compared. deserved: None before MIN_TRIALS."""

    spearman: float | None
    trials: int
    deserved: bool | None

    def __str__(self) -> str:
        rank = "no rank correlation" if self.spearman is None else f"rank correlation {self.spearman:.2f}"
        return f"{rank} with {self.trials} measured trials, {MIN_SPEARMAN:g} needed after {MIN_TRIALS}"


def trust(predicted: Sequence[Sequence[float]], measured: Sequence[Sequence[float]]) -> Trust:
    """predicted, measured: for each trial the same figures at the same load, such as goodput and a latency."""
    assert len(predicted) == len(measured), "one prediction for each measured trial"
    ranks = []
    for ours, theirs in zip(zip(*predicted, strict=True), zip(*measured, strict=True), strict=True):
        if len(set(ours)) > 1 and len(set(theirs)) > 1:
            ranks.append(float(spearmanr(ours, theirs).statistic))
    least = min(ranks, default=None)
    enough = len(measured) >= MIN_TRIALS and least is not None
    return Trust(least, len(measured), least >= MIN_SPEARMAN if enough and least is not None else None)


def _at(parameter: Parameter, share: float) -> Any:
    """The value at a share in [0, 1) of the parameter's range."""
    if isinstance(parameter, ChoiceParameter):
        return parameter.choices[int(share * len(parameter.choices))]
    if isinstance(parameter, IntParameter):
        steps = (parameter.high - parameter.low) // parameter.step + 1
        if parameter.log:
            return min(int(parameter.low * ((parameter.high + 1) / parameter.low) ** share), parameter.high)
        return parameter.low + int(share * steps) * parameter.step
    if parameter.log:
        return parameter.low * (parameter.high / parameter.low) ** share
    return parameter.low + share * (parameter.high - parameter.low)


def _apart(parameter: Parameter, one: Any, other: Any) -> float:
    if isinstance(parameter, ChoiceParameter) or parameter.high == parameter.low:
        return float(one != other)
    if parameter.log:
        return abs(math.log(one / other)) / math.log(parameter.high / parameter.low)
    return abs(one - other) / (parameter.high - parameter.low)
