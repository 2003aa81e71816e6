"""What to try next, from what was seen: start near the baseline, then where the model expects most, and a random arm.

Pure functions of their arguments; docs/search.md has the reasons and the table.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import ndtr

from search_spaces.space import ChoiceParameter, IntParameter, Parameter, SearchSpace, key
from tuner.answers import Answered, QualityKey, by_key, to_beat
from tuner.surrogate import FloatArray, Surrogate, correlations, encode, fit, fit_robust

Arm = Literal["start", "model", "random"]
Knobs = Mapping[str, Any]
LISTED = 4096
"""Configurations of a space up to which all are weighed; of a larger one a draw of DRAWN, and the neighbours of the
best."""
DRAWN, BEST = 1500, 5
START_DRAWS = 200
RANDOM_EVERY = 5
"""The control arm: one trial in so many is drawn at random, so that a report can say what the model was worth."""
SLOPE, SLOPE_WEIGHT = 3.0, 2
"""Growth of a violation per unit of ln load before any is measured, and how many measured ones it counts for."""
VAGUE = 0.15
"""ln load to a capacity that was extrapolated, at which its variance is twice that of a bracketed one."""
LEAST_PROBABILITY = 0.02
"""That a configuration runs at all, however many like it crashed."""
FRONT_SHARE = 0.02
"""What more goodput at a higher quality than the best's is worth, beside as much more than the best."""
LEAST_GOODPUT = 1e-3
"""Requests/s, for its logarithm."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One finished trial. slo, floor: worst signed constraint, <= 0 is held; floor None where quality was not asked.

    rungs: (time scale, worst SLO constraint) of its replays in order; empty where every trial runs at one load.
    goodput None: it could not be measured, by its own fault.
    """

    knobs: Knobs
    goodput: float | None
    quality: float
    slo: float
    floor: float | None
    rungs: Sequence[tuple[float, float]] = ()

    @property
    def feasible(self) -> bool:
        held = min((violation for _, violation in self.rungs), default=self.slo) <= 0
        return self.goodput is not None and held and self.floor is not None and self.floor <= 0


def arm_of(finished: int, startup_trials: int) -> Arm:
    """Which arm proposes when so many trials, the baseline among them, have ended."""
    if finished % RANDOM_EVERY == RANDOM_EVERY - 1:
        return "random"
    return "start" if finished < startup_trials else "model"


@dataclass(frozen=True, slots=True)
class Proposed:
    """hope: expected improvement of ln goodput over the best so far that answers as well; None where no model was
    asked, or nothing held."""

    knobs: dict[str, Any]
    hope: float | None = None


def propose(
    arm: Arm,
    space: SearchSpace,
    baseline: Knobs,
    seen: Sequence[Seen],
    tried: Collection[str],
    rng: random.Random,
    quality_key: QualityKey | None = None,
) -> Proposed:
    """Active knobs that were not tried; any again where all of a listed space were. quality_key: equal where answers
    are; None: not known of any two."""
    if arm == "model" and sum(one.goodput is not None for one in seen) > 1:
        candidates = _candidates(space, seen, tried, rng)
        return _most_promising(space, candidates, seen, _answers(candidates, seen, quality_key))
    return Proposed(_unmodelled(arm, space, baseline, seen, tried, rng))


def _unmodelled(
    arm: Arm, space: SearchSpace, baseline: Knobs, seen: Sequence[Seen], tried: Collection[str], rng: random.Random
) -> dict[str, Any]:
    fresh = [one for one in _draws(space, rng) if key(one) not in tried] or _untried(space, tried, rng)
    if arm == "random" or not fresh:
        return fresh[0] if fresh else _draw(space, rng)
    near = [_near(space, baseline, one, rng) for one in fresh[:START_DRAWS]]
    near = [one for one in near if key(one) not in tried] or fresh
    return _most_different(space, near, [one.knobs for one in seen])


def _draws(space: SearchSpace, rng: random.Random) -> list[dict[str, Any]]:
    return [_draw(space, rng) for _ in range(START_DRAWS)]


def _draw(space: SearchSpace, rng: random.Random) -> dict[str, Any]:
    return space.active({name: _any(parameter, rng) for name, parameter in space.parameters.items()})


def _any(parameter: Parameter, rng: random.Random) -> Any:
    if isinstance(parameter, ChoiceParameter):
        return rng.choice(parameter.choices)
    if isinstance(parameter, IntParameter) and not parameter.log:
        return rng.randrange(parameter.low, parameter.high + 1, parameter.step)
    if not parameter.log:
        return rng.uniform(parameter.low, parameter.high)
    if isinstance(parameter, IntParameter):
        low, high = math.log(parameter.low - 0.5), math.log(parameter.high + 0.5)
        return min(max(round(math.exp(rng.uniform(low, high))), parameter.low), parameter.high)
    return min(math.exp(rng.uniform(math.log(parameter.low), math.log(parameter.high))), parameter.high)


def _near(space: SearchSpace, baseline: Knobs, drawn: Knobs, rng: random.Random) -> dict[str, Any]:
    """The baseline with one or two knobs as drawn, and what those make active.

    Past the knee a random configuration is mostly hopeless in some knob; near a sane one the effect of each shows.
    """
    changed = rng.sample(list(space.parameters), min(rng.choice((1, 2)), len(space.parameters)))
    values = {name: _any(parameter, rng) for name, parameter in space.parameters.items()}
    values |= drawn
    return space.active(values | {name: value for name, value in baseline.items() if name not in changed})


def _most_different(space: SearchSpace, candidates: Sequence[dict[str, Any]], tried: Sequence[Knobs]) -> dict[str, Any]:
    """The candidate whose nearest tried configuration is furthest away (max-min design), in knobs that differ."""
    if not tried:
        return candidates[0]
    points = np.array([encode(space, one) for one in candidates])
    pairs = correlations(points, np.array([encode(space, one) for one in tried]))
    return candidates[int(np.argmax(np.min(np.sum(1.0 - pairs, axis=0), axis=1)))]


def _candidates(
    space: SearchSpace, seen: Sequence[Seen], tried: Collection[str], rng: random.Random
) -> list[dict[str, Any]]:
    if (listed := _listed(space)) is not None:
        return [one for one in listed if key(one) not in tried] or listed
    best = sorted((one for one in seen if one.feasible), key=lambda one: -(one.goodput or 0.0))[:BEST]
    found = [_draw(space, rng) for _ in range(DRAWN)]
    for one in best:
        found += _neighbours(space, one.knobs, rng)
    unique = {key(one): one for one in found}
    return [one for name, one in unique.items() if name not in tried] or found


def _untried(space: SearchSpace, tried: Collection[str], rng: random.Random) -> list[dict[str, Any]]:
    fresh = [one for one in _listed(space) or [] if key(one) not in tried]
    rng.shuffle(fresh)
    return fresh


def _listed(space: SearchSpace) -> list[dict[str, Any]] | None:
    """Every configuration, none twice; None where they are too many, or a knob is continuous."""
    values = [_values(parameter) for parameter in space.parameters.values()]
    if any(v is None for v in values) or math.prod(len(v) for v in values if v is not None) > LISTED:
        return None
    combinations = itertools.product(*(v for v in values if v is not None))
    found = (space.active(dict(zip(space.parameters, one, strict=True))) for one in combinations)
    return list({key(one): one for one in found}.values())


def _values(parameter: Parameter) -> Sequence[Any] | None:
    if isinstance(parameter, ChoiceParameter):
        return parameter.choices
    if isinstance(parameter, IntParameter):
        return range(parameter.low, parameter.high + 1, parameter.step)
    return None


def _neighbours(space: SearchSpace, knobs: Knobs, rng: random.Random) -> Iterator[dict[str, Any]]:
    """`knobs` with one of them changed: to each other choice, or to each of three draws."""
    for name, parameter in space.parameters.items():
        if name not in knobs:
            continue
        others = parameter.choices if isinstance(parameter, ChoiceParameter) else [_any(parameter, rng) for _ in "abc"]
        rest = {other: _any(p, rng) for other, p in space.parameters.items()} | dict(knobs)
        yield from (space.active(rest | {name: value}) for value in others)


def _answers(
    candidates: Sequence[Knobs], seen: Sequence[Seen], quality_key: QualityKey | None
) -> list[Answered | None]:
    """What each would answer, as far as some trial that answers alike has told."""
    if quality_key is None:
        return [None] * len(candidates)
    known = by_key(seen, quality_key)
    return [known.get(quality_key(one)) for one in candidates]


def _most_promising(
    space: SearchSpace, candidates: Sequence[dict[str, Any]], seen: Sequence[Seen], answers: Sequence[Answered | None]
) -> Proposed:
    """The largest expected improvement times the probability that all holds."""
    points = np.array([encode(space, one) for one in candidates])
    tried = np.array([encode(space, one.knobs) for one in seen])
    chance = _chance(tried, points, seen, answers)
    measured = [index for index, one in enumerate(seen) if one.goodput is not None]
    climbed = [index for index in measured if seen[index].rungs]
    if climbed:
        values, vagueness = ln_capacities([seen[index].rungs for index in climbed])
        model = fit_robust(tried[climbed], values, vagueness)
    else:
        goodputs = np.array([math.log(max(seen[index].goodput or 0.0, LEAST_GOODPUT)) for index in measured])
        model = fit(tried[measured], goodputs)
        slo = fit(tried[measured], np.array([seen[index].slo for index in measured]))
        chance *= _probability_below(slo, points) ** 2  # it is to hold now and when it is measured again
    means, deviations = model.predict(points)
    feasible = [index for index, one in enumerate(seen) if one.feasible]
    if not feasible:
        # Whatever holds at the load at which trials begin, or, where there is but one load, at all.
        begin = math.log(min((rung[0] for one in seen for rung in one.rungs), default=1.0))
        return Proposed(candidates[int(np.argmax(chance * (ndtr((means - begin) / deviations) if climbed else 1.0)))])
    served = model.predict(tried[feasible])[0].tolist()
    pairs = [(seen[index].quality, value) for index, value in zip(feasible, served, strict=True)]
    bars = np.array([to_beat(None if one is None else one.quality, pairs, max(served)) for one in answers])
    over_best = expected_improvement(means, deviations, max(served)) * chance
    over_peers = expected_improvement(means, deviations, bars) * chance
    chosen = int(np.argmax(over_best + FRONT_SHARE * (over_peers - over_best)))
    return Proposed(candidates[chosen], float(over_peers[chosen]))


def chances(
    space: SearchSpace, candidates: Sequence[Knobs], seen: Sequence[Seen], quality_key: QualityKey | None
) -> FloatArray:
    """Probability that each candidate runs at all and meets the quality floors, by what the trials so far tell."""
    points = np.array([encode(space, one) for one in candidates])
    tried = np.array([encode(space, one.knobs) for one in seen])
    return _chance(tried, points, seen, _answers(candidates, seen, quality_key))


def _chance(
    tried: FloatArray, points: FloatArray, seen: Sequence[Seen], answers: Sequence[Answered | None]
) -> FloatArray:
    """Probability that a configuration runs at all and meets the quality floors."""
    chance = np.ones(len(points))
    crashed = np.array([one.goodput is None for one in seen], dtype=np.float64)
    if crashed.any():
        chance *= np.clip(1.0 - fit(tried, crashed).predict(points)[0], LEAST_PROBABILITY, 1.0)
    asked = [index for index, one in enumerate(seen) if one.floor is not None]
    if any((seen[index].floor or 0.0) > 0 for index in asked):
        floors = fit(tried[asked], np.array([seen[index].floor for index in asked]))
        missed = np.array([one is not None and not one.holds for one in answers])
        chance *= np.where(missed, 0.0, _probability_below(floors, points))
    return chance


def _probability_below(model: Surrogate, points: FloatArray) -> FloatArray:
    means, deviations = model.predict(points)
    return np.asarray(ndtr(-means / deviations))


def expected_improvement(means: FloatArray, deviations: FloatArray, best: float | FloatArray) -> FloatArray:
    """E[max(f - best, 0)] for normal f (Jones et al., J. Global Optimization 13, 1998, eq. 15)."""
    z = (means - best) / deviations
    return np.asarray(deviations * (z * ndtr(z) + np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)))


def ln_capacities(climbs: Sequence[Sequence[tuple[float, float]]]) -> tuple[FloatArray, FloatArray]:
    """ln of the time scale at which each climb's worst SLO would be met exactly, and the vagueness of that.

    Between the highest rung held and the lowest missed: on the line between them. Missed at once, or held to the end:
    extrapolated by the median slope of the brackets, the vaguer the further.
    """
    slope = slope_of(climbs)
    found = [_ln_capacity(climb, slope) for climb in climbs]
    return np.array([value for value, _ in found]), np.array([vague for _, vague in found])


def _bracket(climb: Sequence[tuple[float, float]]) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    held = max((rung for rung in climb if rung[1] <= 0), default=None)
    missed = min((rung for rung in climb if rung[1] > 0), default=None)
    return held, missed


def slope_of(climbs: Sequence[Sequence[tuple[float, float]]]) -> float:
    slopes = [SLOPE] * SLOPE_WEIGHT
    for held, missed in map(_bracket, climbs):
        if held is not None and missed is not None and missed[0] > held[0]:
            slopes.append((missed[1] - held[1]) / math.log(missed[0] / held[0]))
    return statistics.median(slopes)


def _ln_capacity(climb: Sequence[tuple[float, float]], slope: float) -> tuple[float, float]:
    held, missed = _bracket(climb)
    if held is not None and missed is not None:
        share = -held[1] / (missed[1] - held[1])
        return math.log(held[0]) + share * math.log(missed[0] / held[0]), 1.0
    known = held or missed
    assert known is not None, "a climb without a replay"
    beyond = -known[1] / slope
    return math.log(known[0]) + beyond, 1.0 + (beyond / VAGUE) ** 2
