"""What a configuration is worth: the goodput of the highest load that it was shown to hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tuner.finals import FIRST_REPLAYS, Candidate, claimed, estimates, mostly
from tuner.ladder import SCALES
from tuner.proposals import ln_capacities, slope_of
from tuner.results import StudyResults, TrialResult, ValidationResult
from tuner.scoring.metrics import Interval

LADDER = tuple(sorted((*SCALES, *(round(math.sqrt(low * high), 3) for low, high in pairwise(SCALES)))))
"""Loads of the finals: the rungs, and one halfway between any two. A climb is quick by whole rungs; a claim that stops
at them is half a rung too modest on the average."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What a configuration is worth: good requests/s at the highest load it holds, that load (times the recorded rate)
    and the window it was measured on. Of one that was measured again it is the least of the windows."""

    goodput: Interval
    time_scale: float
    window: str


def proven(results: StudyResults, trial: TrialResult) -> Proven:
    """See Proven; of a trial that held on no window again, or never was measured again: what the search measured."""
    purposes = [purpose for purpose in ("repeat", "holdout") if replays_of(results, trial.number, purpose)]
    found = [one for purpose in purposes if (one := shown(results, trial.number, purpose)) is not None]
    if found and len(found) == len(purposes):
        return min(found, key=lambda one: (one.time_scale, one.goodput.value))
    assert trial.traffic is not None, f"trial {trial.number} was not measured"
    return Proven(trial.traffic.goodput, trial.time_scale or results.time_scale, "tune")


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
        return _claim(results, number, found)
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


def _claim(results: StudyResults, number: int, found: Sequence[ValidationResult]) -> Proven | None:
    candidates, slope = field(results)
    replayed = [one for one in candidates if one.replays]
    estimate = dict(zip((one.number for one in replayed), estimates(replayed, slope), strict=True))[number]
    rung = claimed(next(one for one in replayed if one.number == number), estimate, LADDER)
    if rung < 0:
        return None
    scale = min(LADDER[rung], max(one.time_scale for one in found))
    # With less load no smaller share of the requests is good.
    near = _at(min(one.time_scale for one in found if one.time_scale >= scale), found)
    less, goodput = scale / near.time_scale, near.goodput
    return Proven(Interval(goodput.value * less, goodput.low * less, goodput.high * less), scale, near.window)


def _at(time_scale: float, found: Sequence[ValidationResult]) -> Proven:
    """The median replay at one load."""
    here = sorted((one for one in found if one.time_scale == time_scale), key=lambda one: one.traffic.goodput.value)
    middle = here[math.ceil(len(here) / 2) - 1]
    return Proven(middle.traffic.goodput, time_scale, middle.window)
