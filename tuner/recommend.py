"""From the results of a study to one configuration with reasons, or to an abstention.

The rule is RULE, printed with every recommendation; source: the tuner's notes on robust choice (docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.results import StudyResults, TrialResult, cost_of
from tuner.scoring.cost import Cost
from tuner.scoring.metrics import Interval

RULE = (
    "Among the configurations that meet every SLO and quality floor (and held them when measured again, if any did): "
    "the largest lower 95 % bound of goodput. Those on the Pareto front whose goodput intervals reach that bound are "
    "tied; the tie goes to the larger smallest SLO margin (in steps of 0.05), then to higher quality (in steps of "
    "0.005), then to fewer changes from the baseline. A feasible baseline is kept unless the goodput interval lies "
    "above the baseline's."
)
MARGIN_STEP = 0.05
QUALITY_STEP = 0.005
TESTING = ("recorded_rate", "holdout", "repeat")
"""Purposes of the measurements that test a candidate after the search."""


@dataclass(frozen=True, slots=True)
class Gain:
    """One number of the recommended configuration beside the baseline's. unit: "requests/s", "requests", "s" or "".

    Intervals are 95 %, None where the number is a percentile of one replay. None: the trial does not have the number.
    """

    name: str
    unit: str
    baseline: float | None
    recommended: float | None
    baseline_interval: Interval | None = None
    recommended_interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """trial: None when nothing is feasible; least_violating, binding_constraint and binding_violation say how close
    it was. deployable: False for an abstention, and when the trial missed an SLO or failed in its validation."""

    trial: TrialResult | None
    verdict: str
    reasons: tuple[str, ...]
    runners_up: tuple[TrialResult, ...] = ()
    gains: tuple[Gain, ...] = ()
    rule: str = RULE
    deployable: bool = False
    least_violating: TrialResult | None = None
    binding_constraint: str | None = None
    binding_violation: float | None = None


def recommend(results: StudyResults) -> Recommendation:
    """Apply RULE. The order of the trials and of the validations changes nothing."""
    feasible = [trial for trial in results.trials if trial.state == "feasible"]
    if not feasible:
        return _abstain(results)
    missed, validated, standing = _missed_validations(results), _validated(results), held(results)
    holding = [trial for trial in feasible if trial.number in standing]
    candidates = _better_than_baseline(holding or feasible, results.baseline, missed)
    kept = not candidates
    ranked = _ranked(candidates or holding or feasible, results.baseline)
    chosen = results.baseline if kept else ranked[0]
    others = [trial for trial in ranked if trial.number != chosen.number]
    reasons = [*_why(chosen, others, results.baseline, kept), *_excluded(feasible, missed, chosen)]
    if chosen.number not in validated:
        reasons.append("It was not measured again after the search.")
    return Recommendation(
        trial=chosen,
        verdict=_verdict(chosen, results, kept, missed),
        reasons=tuple(reasons),
        runners_up=tuple(others[:3]),
        gains=_gains(results.baseline, chosen, cost_of(results.spec)),
        deployable=chosen.number not in missed,
    )


def held(results: StudyResults) -> set[int]:
    """Trials that were measured again after the search and met every constraint each time."""
    return _validated(results) - _missed_validations(results).keys()


def slo_margin(trial: TrialResult) -> float:
    """The smallest SLO margin: ln(bound / latency) of the class that is closest to its bound; negative when missed."""
    return min(-value for name, value in trial.constraints.items() if name.startswith("slo:"))


def _ranked(candidates: Sequence[TrialResult], baseline: TrialResult) -> list[TrialResult]:
    """Best first: the tied ones in the order of the tie-break, then the others by their lower bound of goodput."""
    bound = max(_goodput(trial).low for trial in candidates)

    def key(trial: TrialResult) -> tuple[float, ...]:
        tied = trial.on_front and _goodput(trial).high >= bound
        margin = round(slo_margin(trial) / MARGIN_STEP)
        quality = round(_quality(trial).value / QUALITY_STEP)
        tie_break = (-margin, -quality, len(_changes(trial, baseline)))
        return (0.0, *tie_break, trial.number) if tied else (1.0, -_goodput(trial).low, trial.number)

    return sorted(candidates, key=key)


def _better_than_baseline(
    pool: Sequence[TrialResult], baseline: TrialResult, missed: Mapping[int, str]
) -> list[TrialResult]:
    """Those that are proven to serve more than the baseline; all of them when it is no alternative."""
    if baseline.state != "feasible" or (baseline.number in missed and any(t.number not in missed for t in pool)):
        return list(pool)
    return [trial for trial in pool if _goodput(trial).low > _goodput(baseline).high]


def _validated(results: StudyResults) -> set[int]:
    measured = {v.trial for v in results.validations if v.purpose in TESTING}
    return measured | {failure.trial for failure in results.validation_failures if failure.purpose in TESTING}


def _missed_validations(results: StudyResults) -> dict[int, str]:
    """Trial -> in words, how one of its validations failed, or else the worst constraint that one of them missed."""
    worst: dict[int, tuple[float, str]] = {}
    for validation in results.validations:
        if validation.purpose not in TESTING:
            continue
        for name, value in validation.constraints.items():
            if value > worst.get(validation.trial, (0.0, ""))[0]:
                where = f"window {validation.window!r} at {validation.time_scale:g}x ({validation.purpose})"
                worst[validation.trial] = value, f"missed {name} by {value:.3f} on {where}"
    failed = {
        failure.trial: f"failed ({failure.reason}) on window {failure.window!r} at {failure.time_scale:g}x "
        f"({failure.purpose})"
        for failure in results.validation_failures
        if failure.purpose in TESTING
    }
    return {trial: words for trial, (_, words) in worst.items()} | failed


def _verdict(chosen: TrialResult, results: StudyResults, kept: bool, missed: Mapping[int, str]) -> str:
    goodput, baseline = _goodput(chosen), results.baseline
    served = f"{goodput.value:.2f} good requests/s ({goodput.low:.2f} to {goodput.high:.2f})"
    if chosen.number in missed:
        return f"Trial {chosen.number} is the best of the search with {served}, but it {missed[chosen.number]}."
    if kept:
        return f"Keep the baseline: {served}, and no configuration was shown to serve more within the SLOs and floors."
    if baseline.traffic is None:
        return f"Deploy trial {chosen.number}: {served}; the baseline could not be measured."
    before = baseline.traffic.goodput.value
    state = "" if baseline.state == "feasible" else ", which misses its constraints,"
    return f"Deploy trial {chosen.number}: {served} where the baseline{state} serves {before:.2f}."


def _why(chosen: TrialResult, others: Sequence[TrialResult], baseline: TrialResult, kept: bool) -> list[str]:
    quality, closest = _quality(chosen), min(chosen.constraints.items(), key=lambda item: (-item[1], item[0]))
    reasons = [
        f"It meets all {len(chosen.constraints)} constraints, {closest[0]} most narrowly: by {-closest[1]:.3f}.",
        f"Quality {quality.value:.4f} ({quality.low:.4f} to {quality.high:.4f}) of the full-precision reference.",
    ]
    if not kept:
        changes = ", ".join(_changes(chosen, baseline))
        reasons.append(f"It differs from the baseline in: {changes or 'nothing'}.")
    tied = [trial for trial in others if _goodput(trial).high >= _goodput(chosen).low]
    if tied and not kept:
        numbers = ", ".join(str(trial.number) for trial in tied[:5])
        reasons.append(f"{len(tied)} more cannot be told apart by goodput ({numbers}); its place is by the tie-break.")
    return reasons


def _excluded(feasible: Sequence[TrialResult], missed: Mapping[int, str], chosen: TrialResult) -> list[str]:
    numbers = [trial.number for trial in feasible if trial.number in missed and trial.number != chosen.number]
    return [f"Trial {number} {missed[number]}." for number in numbers]


def _abstain(results: StudyResults) -> Recommendation:
    measured = [trial for trial in results.trials if trial.constraints]
    if not measured:
        return Recommendation(None, "No recommendation: no trial could be measured.", ())
    closest = min(measured, key=lambda trial: (max(trial.constraints.values()), trial.number))
    name, value = max(closest.constraints.items(), key=lambda item: (item[1], item[0]))
    counts: dict[str, int] = {}
    for trial in measured:
        for missed in (key for key, violation in trial.constraints.items() if violation > 0.0):
            # A hopeless replay is not asked the probes: it says nothing of quality.
            if trial.quality is not None or not missed.startswith("quality:"):
                counts[missed] = counts.get(missed, 0) + 1
    return Recommendation(
        trial=None,
        verdict=f"No recommendation: nothing is feasible; trial {closest.number} comes closest and misses {name} by "
        f"{value:.3f} ({_meaning(name)}).",
        reasons=tuple(f"{key} is missed by {n} of {len(measured)} trials." for key, n in sorted(counts.items())),
        gains=_gains(results.baseline, closest, cost_of(results.spec)),
        least_violating=closest,
        binding_constraint=name,
        binding_violation=value,
    )


def _meaning(constraint: str) -> str:
    return "ln of latency / bound" if constraint.startswith("slo:") else "nats per token, or share of answers kept"


def _gains(baseline: TrialResult, chosen: TrialResult, cost: Cost | None) -> tuple[Gain, ...]:
    old, new = _figures(baseline, cost), _figures(chosen, cost)
    gains = []
    for name in dict.fromkeys([*new, *old]):
        per = "requests" if name.startswith("goodput per ") else "s"
        unit = {"goodput": "requests/s", "quality": ""}.get(name, per)
        before, after = old.get(name), new.get(name)
        values = [figure.value if isinstance(figure, Interval) else figure for figure in (before, after)]
        intervals = [figure if isinstance(figure, Interval) else None for figure in (before, after)]
        gains.append(Gain(name, unit, values[0], values[1], intervals[0], intervals[1]))
    return tuple(gains)


def _figures(trial: TrialResult, cost: Cost | None) -> dict[str, Interval | float]:
    """goodput, also per device-hour and per unit of currency where the cost is known, quality, and
    "<class> p95 <metric>" for what was measured."""
    figures: dict[str, Interval | float] = {}
    if trial.traffic is not None:
        figures["goodput"] = trial.traffic.goodput
        figures |= {} if cost is None else cost.of(trial.traffic.goodput)
    if trial.quality is not None:
        figures["quality"] = _quality(trial)
    for name, found in trial.traffic.classes.items() if trial.traffic is not None else ():
        figures |= {f"{name} p95 {metric}": table[95] for metric, table in found.percentiles.items()}
    return figures


def _goodput(trial: TrialResult) -> Interval:
    assert trial.traffic is not None, f"trial {trial.number} is feasible without traffic"
    return trial.traffic.goodput


def _quality(trial: TrialResult) -> Interval:
    assert trial.quality is not None, f"trial {trial.number} is feasible without quality"
    return Interval(trial.quality.value, trial.quality.low, trial.quality.high)


def _changes(trial: TrialResult, baseline: TrialResult) -> list[str]:
    """Knobs with another value than the baseline's."""
    missing: Any = object()
    return [name for name, value in trial.knobs.items() if baseline.knobs.get(name, missing) != value]
