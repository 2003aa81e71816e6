"""What a configuration is worth: the goodput of the highest load that it was shown to hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tuner import finals
from tuner.finals import FIRST_REPLAYS, Candidate, Estimate, claimed, estimates, larger, mostly
from tuner.ladder import SCALES
from tuner.proposals import ln_capacities, slope_of
from tuner.results import StudyResults, TrialResult, ValidationResult
from tuner.scoring.metrics import Interval, TrafficMetrics

LADDER = tuple(sorted((*SCALES, *(round(math.sqrt(low * high), 3) for low, high in pairwise(SCALES)))))
"""Loads of the finals: the rungs, and one halfway between any two. A climb is quick by whole rungs; a claim that stops
at them is half a rung too modest on the average."""

HELD_OUT = "holdout"
SEARCH, AGAIN = "search", ("repeat", HELD_OUT)
"""What a worth rests on: the search, or replays after it on the tuning window and on the held-out one."""
ORIGINS = {SEARCH: "search, once", "repeat": "tuning window, again", HELD_OUT: "held-out window"}
"""Where the figures of a worth come from, for tables: those of two windows are not to be compared to a few per cent."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What a configuration is worth: good requests/s at the highest load it holds, and that load (times the recorded
    rate).

    purpose: of the replay that it rests on. replayed_scale: that replay's load, which may be above time_scale: with
    less load no smaller share of the requests is good, and none takes longer. traffic, tail_latency (seconds, the
    study's objective): what was measured there. foretold: by finals.claim, not by the replays at this very load.
    created: when that replay was stored, "" for one of the search.
    """

    goodput: Interval
    time_scale: float
    purpose: str
    replayed_scale: float
    traffic: TrafficMetrics
    tail_latency: float
    foretold: bool = False
    created: str = ""

    @property
    def offered_rate(self) -> float:
        """Requests/s that are offered at time_scale."""
        return self.traffic.offered_rate * self.time_scale / self.replayed_scale


def proven(results: StudyResults, trial: TrialResult) -> Proven:
    """See Proven: what is claimed after the search; of a trial without a claim, what the search measured."""
    if (found := claim(results, trial.number)) is not None:
        return found
    assert trial.traffic is not None and trial.objectives is not None, f"trial {trial.number} was not measured"
    scale = trial.time_scale or results.time_scale
    return Proven(trial.traffic.goodput, scale, SEARCH, scale, trial.traffic, trial.objectives[2])


def claim(results: StudyResults, number: int) -> Proven | None:
    """What may be claimed of a configuration that was measured again: the least of the windows. None of one that was
    not, or that held on one of them no load.

    Where trials climb, of equal loads that on the held-out window, where every claim is tested: its requests may come
    twice as fast, and one's goodput there must not stand beside another's on the tuning window.
    """
    purposes = [purpose for purpose in AGAIN if replays_of(results, number, purpose)]
    found = [shown(results, number, purpose) for purpose in purposes]
    held = [one for one in found if one is not None]
    if not held or len(held) < len(found):
        return None
    if climbs(results):
        return min(held, key=lambda one: (one.time_scale, one.purpose != HELD_OUT))
    return min(held, key=lambda one: one.goodput.value)


def replicas(time_scale: float) -> int:
    """How many servers, each with an equal share, should hold the recorded traffic; of one that holds no less: 1."""
    return max(math.ceil(1 / time_scale), 1)


def replays_of(results: StudyResults, number: int, purpose: str) -> list[ValidationResult]:
    """The measurements of a trial's configuration for one purpose."""
    return [one for one in results.validations if (one.trial, one.purpose) == (number, purpose)]


def shown(results: StudyResults, number: int, purpose: str) -> Proven | None:
    """The highest load that a configuration was shown to hold for one purpose; None where it holds at none.

    Repeats of the finals: what they let it claim (finals.claimed), no more than it was replayed at. Otherwise the
    highest load at which most replays held.
    """
    found = replays_of(results, number, purpose)
    if any(one.misses_quality for one in found):
        return None
    if purpose == "repeat" and climbs(results) and len(found) >= FIRST_REPLAYS:
        return _raced(results, number, found)
    kept = holding(found)
    return _at(max(one.time_scale for one in kept), kept) if kept else None


def climbs(results: StudyResults) -> bool:
    """Whether the study's trials climb, rather than all run at one load."""
    return results.spec.traffic.time_scale == "auto"


def holding(validations: Sequence[ValidationResult]) -> list[ValidationResult]:
    """Those at a load of a purpose at which most of that purpose held."""
    by_load: dict[tuple[str, float], list[bool]] = {}
    for one in validations:
        by_load.setdefault((one.purpose, one.time_scale), []).append(one.holds)
    return [one for one in validations if mostly(by_load[one.purpose, one.time_scale])]


def field(results: StudyResults) -> tuple[list[Candidate], float]:
    """Every measured trial as a candidate of the finals: the capacity that its climb promised, and its replays since;
    and the growth of a violation per unit of ln load. Of the baseline the calibration is part of its climb."""
    calibration = tuple((one.time_scale, one.worst_slo) for one in replays_of(results, 0, "calibration"))
    climbed = [trial for trial in results.trials if trial.rungs]
    rungs = [(*(calibration if trial.number == 0 else ()), *trial.rungs) for trial in climbed]
    expected = ln_capacities(rungs)[0] if rungs else ()
    return [
        Candidate(
            trial.number,
            float(capacity),
            tuple((one.time_scale, one.worst_slo) for one in replays_of(results, trial.number, "repeat")),
        )
        for trial, capacity in zip(climbed, expected, strict=True)
    ], slope_of(rungs)


def outdoes(results: StudyResults, number: int, other: int) -> float | None:
    """The probability, by the replays of the finals, that one trial's configuration has the larger capacity than
    another's; None where they did not race."""
    found = _estimated(results) if climbs(results) else {}
    if number not in found or other not in found:
        return None
    return larger(found[number][1], found[other][1])


def _estimated(results: StudyResults) -> dict[int, tuple[Candidate, Estimate]]:
    """Those that were replayed in the finals, by the number of their trials."""
    candidates, slope = field(results)
    replayed = [one for one in candidates if one.replays]
    return {one.number: (one, found) for one, found in zip(replayed, estimates(replayed, slope), strict=True)}


def _raced(results: StudyResults, number: int, found: Sequence[ValidationResult]) -> Proven | None:
    candidate, estimate = _estimated(results)[number]
    rung = claimed(candidate, estimate, LADDER)
    if rung < 0:
        return None
    scale = min(LADDER[rung], max(one.time_scale for one in found))
    near = _at(min(one.time_scale for one in found if one.time_scale >= scale), found)
    less, goodput = scale / near.time_scale, near.goodput
    return replace(
        near,
        goodput=Interval(goodput.value * less, goodput.low * less, goodput.high * less),
        time_scale=scale,
        foretold=rung <= finals.claim(estimate, LADDER),
    )


def _at(time_scale: float, found: Sequence[ValidationResult]) -> Proven:
    """The median replay at one load."""
    here = sorted((one for one in found if one.time_scale == time_scale), key=lambda one: one.traffic.goodput.value)
    middle = here[math.ceil(len(here) / 2) - 1]
    return Proven(
        goodput=middle.traffic.goodput,
        time_scale=time_scale,
        purpose=middle.purpose,
        replayed_scale=time_scale,
        traffic=middle.traffic,
        tail_latency=middle.tail_latency,
        created=middle.created,
    )
