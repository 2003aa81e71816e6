"""Why this configuration: its constraints, its rivals, what each of its changes buys, how near it is to a cliff."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tuner.finals import CONFIDENCE
from tuner.results import StudyResults, TrialResult, ValidationResult
from tuner.scoring.metrics import Interval
from tuner.scoring.slo import BADNESS_CAP
from tuner.worth import AGAIN, Proven, holding, outdoes, replays_of, replicas, shown

CLIFF = 0.2
"""Share of the requests whose loss, one step or one mishap away, is told as a warning."""
WINDOWS = {"repeat": "the tuning window", "holdout": "held-out traffic", "recorded_rate": "the tuning window"}
"""What was replayed for which purpose."""
NEIGHBOUR = "next to it: "
"""How the names of variations begin that are one step away."""


def why(
    results: StudyResults,
    chosen: TrialResult,
    others: Sequence[TrialResult],
    worth: Mapping[int, Proven],
    kept: bool,
) -> list[str]:
    """Its constraints as the search measured them, and its rivals."""
    quality, closest = quality_of(chosen), min(chosen.constraints.items(), key=lambda item: (-item[1], item[0]))
    baseline, searched = results.baseline, chosen.time_scale or results.time_scale
    met = f"met all {len(chosen.constraints)} constraints at {searched:.3g}x the recorded rate, "
    met += f"{closest[0]} most narrowly: {_spare(*closest)}"
    reasons = [
        f"In the search it {met if closest[1] <= 0 else f'missed {missed_by(*closest)} at {searched:.3g}x'}.",
        f"Quality {quality.value:.4f} ({quality.low:.4f} to {quality.high:.4f}) of the full-precision reference.",
    ]
    if not kept and (probability := outdoes(results, chosen.number, baseline.number)) is not None:
        reasons.append(
            f"By the replays of the finals it holds more load than the baseline with probability {_sure(probability)}."
        )
    if (needed := replicas(worth[chosen.number].time_scale)) > 1:
        reasons.append(f"It does not hold the recorded rate: {needed} replicas, each with an equal share, should.")
    if not kept and not any((one.trial, one.purpose) == (chosen.number, "ablation") for one in results.validations):
        changed = ", ".join(changes(chosen, baseline))
        reasons.append(f"It differs from the baseline in: {changed or 'nothing'}.")
    tied = [t for t in others if worth[t.number].goodput.high >= worth[chosen.number].goodput.low]
    if tied and not kept:
        numbers = ", ".join(str(trial.number) for trial in tied[:5])
        reasons.append(f"{len(tied)} more cannot be told apart by goodput ({numbers}); its place is by the tie-break.")
    return reasons


def _sure(probability: float) -> str:
    return "above 0.999" if probability > 0.999 else f"{probability:.3f}"


def _spare(constraint: str, value: float) -> str:
    """What a constraint that holds has left."""
    if constraint.startswith("slo:"):
        return f"{1 - math.exp(value):.0%} of its bounds were to spare"
    return f"by {-value:.3f}"


def missed_by(constraint: str, value: float) -> str:
    """A constraint that does not hold, and by how much: of an SLO, the deciding latency over its bound; of quality,
    nats per token or a share of the answers."""
    if not constraint.startswith("slo:"):
        return f"{constraint} by {value:.3f}"
    return f"{constraint} by a factor of " + ("20 or more" if value >= BADNESS_CAP else f"{math.exp(value):.3g}")


def measured_again(results: StudyResults, chosen: TrialResult) -> list[str]:
    """What was replayed after the search at which load, and what of it is claimed: a sentence for each window."""
    sentences = []
    for purpose, where in ((purpose, WINDOWS[purpose]) for purpose in AGAIN):
        if not (found := replays_of(results, chosen.number, purpose)):
            continue
        loads = sorted({one.time_scale for one in found})
        held = {scale: [one.holds for one in found if one.time_scale == scale] for scale in loads}
        counts = ", ".join(
            f"{sum(held[at])} of {len(held[at])} replay{'s'[: len(held[at]) - 1]} at {at:.3g}x" for at in loads
        )
        sentences.append(f"Measured again on {where} it held {counts}{_concluded(results, chosen.number, purpose)}.")
    return sentences


def _concluded(results: StudyResults, number: int, purpose: str) -> str:
    one = shown(results, number, purpose)
    if one is None:
        return ": no load can be claimed"
    replayed = {replay.time_scale for replay in replays_of(results, number, purpose)}
    if one.foretold:
        itself = "" if one.time_scale in replayed else ", which was not replayed itself,"
        return f": one more replay at {one.time_scale:.3g}x{itself} would hold with probability {CONFIDENCE:g}"
    return "" if one.time_scale in replayed else f": the median replay would hold {one.time_scale:.3g}x"


def excluded(feasible: Sequence[TrialResult], missed: Mapping[int, str], chosen: TrialResult) -> list[str]:
    numbers = [trial.number for trial in feasible if trial.number in missed and trial.number != chosen.number]
    return [f"Trial {number} {missed[number]}." for number in numbers]


def bought(results: StudyResults, chosen: TrialResult, worth: Proven) -> list[str]:
    """What each change from the baseline buys, from measurements without it: see examination.py. A line for all that
    buy the same."""
    lines: dict[str, list[str]] = {}
    measured = _by_window(results, chosen.number, "ablation")
    for name, validations in measured.items():
        knob = name.removeprefix("without ")
        value, before = _value(chosen.knobs.get(knob)), _value(results.baseline.knobs.get(knob))
        held = max(holding(validations), key=lambda v: v.time_scale, default=None)
        if held is None:
            buys = f"without it the rest does not hold even {min(v.time_scale for v in validations):.3g}x"
        # By load, not by goodput: the worth may be of another window, with other requests.
        elif held.time_scale >= worth.time_scale:
            buys = f"not needed at this load; the rest holds {held.time_scale:.3g}x without it"
        else:
            buys = f"without it the rest holds no more than {held.time_scale:.3g}x"
        lines.setdefault(buys, []).append(f"{knob} {value} instead of {before}")
    if lines:  # what could not be measured, because the engine failed or refuses it, must not go unsaid
        untold = [k for k in changes(chosen, results.baseline) if f"without {k}" not in measured]
        told = [f"{k} {_value(chosen.knobs.get(k))} instead of {_value(results.baseline.knobs.get(k))}" for k in untold]
        lines |= {"without it the rest was not measured": told} if told else {}
    return [f"{', '.join(changed)}: {_each(buys, len(changed))}." for buys, changed in lines.items()]


def _each(buys: str, changed: int) -> str:
    return (
        buys
        if changed == 1
        else buys.replace("not needed", "none of them needed by itself").replace(
            "without it", "without any one of them"
        )
    )


def cliffs(results: StudyResults, chosen: TrialResult) -> list[str]:
    """The share of good requests under other circumstances, and one step away in each number, at the load that the
    configuration is worth: the latest at which each was replayed. A share, not a goodput: the worth may be of another
    window, with other requests."""
    shares = {
        name: min(_good_share(v) for v in validations if v.time_scale == validations[-1].time_scale)
        for name, validations in _by_window(results, chosen.number, "scenario").items()
    }
    lines = []
    steps = {name: share for name, share in shares.items() if name.startswith(NEIGHBOUR)}
    for name, share in shares.items():
        if name not in steps:
            warning = ", a cliff" if share < 1 - CLIFF else ""
            name = name.replace("that load", "the claimed load")
            lines.append(f"With {name}: {share:.0%} of the requests are good{warning}.")
    if steps:
        worst = min(steps, key=lambda name: steps[name])
        warning = ": a cliff is near" if steps[worst] < 1 - CLIFF else ""
        where = worst.removeprefix(NEIGHBOUR)
        lines.append(f"One step away in any number, at worst {steps[worst]:.0%} are ({where}){warning}.")
    return lines


def _good_share(validation: ValidationResult) -> float:
    classes = validation.traffic.classes.values()
    return sum(found.good for found in classes) / sum(found.offered for found in classes)


def _by_window(results: StudyResults, number: int, purpose: str) -> dict[str, list[ValidationResult]]:
    found: dict[str, list[ValidationResult]] = {}
    for validation in results.validations:
        if (validation.trial, validation.purpose) == (number, purpose):
            found.setdefault(validation.window, []).append(validation)
    return found


def _value(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def quality_of(trial: TrialResult) -> Interval:
    assert trial.quality is not None, f"trial {trial.number} is feasible without quality"
    return Interval(trial.quality.value, trial.quality.low, trial.quality.high)


def changes(trial: TrialResult, baseline: TrialResult) -> list[str]:
    """Knobs with another value than the baseline's."""
    missing: Any = object()
    return [name for name, value in trial.knobs.items() if baseline.knobs.get(name, missing) != value]
