"""Screening: which configurations are worth measuring first, by a predictor that is cheap and may be wrong.

It orders and proposes, and never decides: what it proposes is measured like any other trial, and its predictions are
told to nobody. How far they deserve to be followed is measured during the study (trust).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import qmc, spearmanr

from search_spaces.space import ChoiceParameter, IntParameter, Parameter, SearchSpace, key

Knobs = dict[str, Any]
CANDIDATES = 256
PROPOSALS = 8
NEAREST = 0.08
"""Two proposals are at least so far apart, as a mean over knobs of 0 (same) to 1 (other choice, other end)."""
MIN_TRIALS = 12
"""Measured trials before a verdict (methods.md C6)."""
MIN_SPEARMAN = 0.8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration and what was predicted for it: higher is better."""

    knobs: Knobs
    group: str
    predicted: float


@dataclass(frozen=True, slots=True)
class Screening:
    """proposals: best first. predicted: how many configurations there are predictions for. baseline: its own."""

    proposals: tuple[Candidate, ...]
    predicted: int
    baseline: float | None


def screen(
    space: SearchSpace,
    baseline: Mapping[str, Any],
    predict: Callable[[Knobs], float | None],
    group: Callable[[Knobs], str],
    *,
    seed: int = 0,
    candidates: int = CANDIDATES,
    proposals: int = PROPOSALS,
    excluded: Collection[str] = (),
    enough: Callable[[], bool] = lambda: False,
) -> Screening:
    """Predict for many configurations of the space and propose a diverse few that should beat the baseline.

    predict: None where nothing can be said. group: equal where the answers are (adapters.quality_key): the predictor
    knows no quality, so the best of each group are proposed in turn, none of an `excluded` group. enough: asked between
    predictions, ends them early.
    """
    own = predict(dict(baseline))
    found = []
    for knobs in drawn(space, baseline, seed, candidates):
        if enough():
            break
        if (name := group(knobs)) not in excluded and (value := predict(knobs)) is not None:
            found.append(Candidate(knobs, name, value))
    better = [candidate for candidate in found if own is None or candidate.predicted > own]
    return Screening(tuple(diverse(better, space, proposals)), len(found), own)


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


def diverse(candidates: Sequence[Candidate], space: SearchSpace, count: int) -> list[Candidate]:
    """The best of each group in turn, best group first; none nearer than NEAREST to one before it."""
    queues: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda c: (-c.predicted, key(c.knobs))):
        queues.setdefault(candidate.group, []).append(candidate)
    chosen: list[Candidate] = []
    while len(chosen) < count and any(queues.values()):
        for queue in queues.values():
            while queue and any(distance(space, queue[0].knobs, c.knobs) < NEAREST for c in chosen):
                queue.pop(0)
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


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
