"""What each change of the recommended configuration buys, and how near it stands to a cliff.

One change is taken back at a time, at the load that the whole is worth and below until the rest holds. Then the whole
is measured under more load, with the requests in another order and with fewer guesses accepted, and its neighbours, one
step away in each number, as it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from search_spaces.space import IntParameter, SearchSpace
from tuner import ladder
from tuner.bench import Bench
from tuner.errors import ServingError
from tuner.outcome import disqualifying_doubt, misses_an_slo
from tuner.reasons import NEIGHBOUR, changes
from tuner.recommend import recommend
from tuner.results import TrialResult, ValidationResult, load_results
from tuner.serving import adapters
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import ACCEPTED, DRAFTED, Purpose, share
from tuner.serving.testbed import Load
from tuner.worth import proven

DESCENT = 4
"""Rungs down at which the rest is measured, until it holds."""
FEWER_ACCEPTED = 0.8
"""Share of the measured acceptance that other text may have (Spec-Bench's domains differ by as much)."""
MORE_LOAD = (1.2, 1.5)
"""Times the load that the whole is worth: whether it bends or breaks there."""


@dataclass(frozen=True, slots=True)
class Variation:
    """name: the window under which it is stored."""

    name: str
    purpose: Purpose
    config: ServingConfig
    load: Callable[[Load], Load] = lambda load: load


def examine(bench: Bench) -> None:
    """Measure the variations of what is recommended, those that were not measured yet at the load that it is worth."""
    results = load_results(bench.store, bench.study_name)
    found = recommend(results)
    if found.trial is None or not found.deployable or found.trial.number == 0:
        return
    scale = proven(results, found.trial).time_scale
    known = {(v.window, v.time_scale): v for v in results.validations if v.trial == found.trial.number}
    for variation in variations(bench, results.baseline, found.trial):
        _measure(bench, found.trial.number, variation, scale, known)


def variations(bench: Bench, baseline: TrialResult, chosen: TrialResult) -> Iterator[Variation]:
    """Those whose configurations the engine can run."""
    config = bench.plan.config
    for knob in changes(chosen, baseline):
        yield from _valid(f"without {knob}", "ablation", config(_without(bench.plan.space, knob, chosen, baseline)))
    for times in MORE_LOAD:
        yield Variation(f"{times:g} times that load", "scenario", config(chosen.knobs), partial(faster, times=times))
    if all(request.session is None for request in bench.plan.windows["tune"].requests):
        yield Variation("the requests in another order", "scenario", config(chosen.knobs), shuffled)
    if (acceptance := share(chosen.engine_metrics, ACCEPTED, DRAFTED)) is not None:
        fewer = config(chosen.knobs)
        fewer = replace(fewer, settings={**fewer.settings, "synthetic_acceptance": acceptance * FEWER_ACCEPTED})
        yield from _valid(f"{1 - FEWER_ACCEPTED:.0%} fewer guesses accepted", "scenario", fewer)
    for name, knobs in neighbours(bench.plan.space, chosen.knobs):
        yield from _valid(f"{NEIGHBOUR}{name}", "scenario", config(knobs))


def neighbours(space: SearchSpace, knobs: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One step down and up in each whole number: a factor of two on a logarithmic scale, otherwise its step."""
    for name, parameter in space.parameters.items():
        if not isinstance(parameter, IntParameter) or name not in knobs:
            continue
        value = int(knobs[name])
        around = (value // 2, value * 2) if parameter.log else (value - parameter.step, value + parameter.step)
        for other in around:
            if parameter.contains(other):
                yield f"{name} {other}", space.active({**space.least(), **knobs, name: other})


def faster(load: Load, times: float) -> Load:
    """The same requests in a shorter time."""
    return replace(load, time_scale=load.time_scale * times)


def shuffled(load: Load) -> Load:
    """The same requests at the same arrivals, in another order (seeded, so that every study draws the same)."""
    order = list(load.requests)
    random.Random(0).shuffle(order)
    pairs = zip(load.requests, order, strict=True)
    return replace(load, requests=tuple(replace(other, id=at.id, arrival=at.arrival) for at, other in pairs))


def _without(space: SearchSpace, knob: str, chosen: TrialResult, baseline: TrialResult) -> dict[str, Any]:
    """The chosen knobs with this one as in the baseline, and what that makes active or inert."""
    defaults = {**space.least(), **baseline.knobs}
    return space.active({**defaults, **chosen.knobs, knob: defaults[knob]})


def _valid(name: str, purpose: Purpose, config: ServingConfig) -> Iterator[Variation]:
    try:
        adapters.engine_config(config)
    except ServingError:
        return  # cannot be had, so nothing is to be told of it
    yield Variation(name, purpose, config)


def _measure(
    bench: Bench,
    number: int,
    variation: Variation,
    scale: float | None,
    known: Mapping[tuple[str, float], ValidationResult],
) -> None:
    """A change taken back is measured down the ladder until the rest holds; failures are told and kept out. known:
    what was measured before an interruption, by window and time scale."""
    descends = variation.purpose == "ablation" and bench.plan.spec.traffic.time_scale == "auto"
    for _ in range(DESCENT + 1 if descends else 1):
        if scale is None:
            return
        load = replace(variation.load(bench.plan.load("tune", scale)), window=variation.name)
        scale = ladder.below(scale)
        if (earlier := known.get((variation.name, load.time_scale))) is not None:
            if earlier.worst_slo <= 0:
                return
            continue
        bench.report.begin(f"{variation.purpose}: {variation.name}")
        bench.report.at(load.time_scale)
        try:
            measured = bench.measure(number, variation.config, load, variation.purpose)
        except ServingError as error:
            bench.report.note(f"{variation.purpose} {variation.name}: {error.reason}: {error}")
            return
        if disqualifying_doubt(bench.plan, measured) is not None or not misses_an_slo(bench.plan, measured):
            return
