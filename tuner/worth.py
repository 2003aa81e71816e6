"""What a configuration is worth: the goodput of the highest load that it was shown to hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner.results import StudyResults, TrialResult, ValidationResult
from tuner.scoring.metrics import Interval


@dataclass(frozen=True, slots=True)
class Proven:
    """What a configuration is worth: good requests/s at the highest load it holds, that load (times the recorded rate)
    and the window it was measured on. Of one that was measured again it is the least of the windows."""

    goodput: Interval
    time_scale: float
    window: str


def proven(results: StudyResults, trial: TrialResult) -> Proven:
    """See Proven; of a trial that held on no window again, or never was measured again: what the search measured."""
    again = [v for v in results.validations if v.trial == trial.number and v.purpose in ("repeat", "holdout")]
    held_again = holding(again)
    if {v.purpose for v in held_again} == {v.purpose for v in again} and held_again:
        least = min(held_again, key=lambda v: (v.time_scale, v.traffic.goodput.value))
        return Proven(least.traffic.goodput, least.time_scale, least.window)
    assert trial.traffic is not None, f"trial {trial.number} was not measured"
    return Proven(trial.traffic.goodput, trial.time_scale or results.time_scale, "tune")


def holding(validations: Sequence[ValidationResult]) -> list[ValidationResult]:
    """Those at a load of a purpose at which none of that purpose missed."""
    missed = {(v.purpose, v.time_scale) for v in validations if not v.holds}
    return [v for v in validations if (v.purpose, v.time_scale) not in missed]
