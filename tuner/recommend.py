"""From the results of a study to one configuration with reasons, or to an abstention.

The rule is RULE, printed with every recommendation; source: the tuner's notes on robust choice (docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tuner.alternatives import Alternative, alternatives
from tuner.finals import CONFIDENCE
from tuner.reasons import WINDOWS, bought, changes, cliffs, excluded, measured_again, missed_by, quality_of, why
from tuner.results import StudyResults, TrialResult, ValidationResult
from tuner.scored import cost_of
from tuner.scoring.metrics import Interval
from tuner.serving.measurement import Purpose
from tuner.worth import SEARCH, Proven, climbs, outdoes, proven, replays_of, shown

RULE = (
    "Among the configurations that meet every SLO and quality floor (and held them when measured again, if any did): "
    "the largest lower 95 % bound of goodput at the highest load that each holds; of one that was measured again, on "
    "the window where that is least, of equal loads on held-out traffic. Finalists race: the load that one is worth is "
    "the highest that a further replay would hold with probability 0.95, and the one with the largest lower bound of "
    "capacity goes on to held-out traffic, where it must hold too. Those on the Pareto front whose goodput intervals "
    "reach that bound are tied; the tie goes to the larger smallest SLO margin (in steps of 0.05), then to higher "
    "quality (in steps of 0.005), then to fewer changes from the baseline. A feasible baseline is kept unless the "
    "goodput interval lies above the baseline's and, where both raced, the capacity is larger with probability 0.95."
)
MARGIN_STEP = 0.05
QUALITY_STEP = 0.005
AT_RECORDED_RATE, AT_ITS_LOAD = " at the recorded rate", " at its load"
TESTING: tuple[Purpose, ...] = ("recorded_rate", "holdout", "repeat")
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
    it was. deployable: False for an abstention, and when the trial missed an SLO or failed in its validation.
    alternatives: the recommended one and those that are better in one respect, see tuner.alternatives."""

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
    alternatives: tuple[Alternative, ...] = ()


def recommend(results: StudyResults) -> Recommendation:
    """Apply RULE. The order of the trials and of the validations changes nothing."""
    feasible, standing = list(results.candidates), held(results)
    if results.baseline not in feasible and stands(results, results.baseline):
        feasible.insert(0, results.baseline)
    if not feasible:
        return _abstain(results)
    missed, validated = _missed_validations(results), _validated(results)
    worth = {trial.number: proven(results, trial) for trial in (results.baseline, *feasible) if trial.traffic}
    stood = _furthest(results, [trial for trial in feasible if trial.number in standing])
    candidates = _better_than_baseline(stood or feasible, results, worth, missed)
    kept = not candidates
    ranked = _ranked(candidates or stood or feasible, results.baseline, worth)
    chosen = results.baseline if kept else ranked[0]
    others = [trial for trial in ranked if trial.number != chosen.number]
    if chosen.number not in validated and validated - {results.baseline.number}:
        missed = {**missed, chosen.number: "was not measured again, and none held that was"}
    reasons = [*why(results, chosen, others, worth, kept), *measured_again(results, chosen)]
    reasons += excluded(feasible, missed, chosen)
    if not kept:
        reasons += [*bought(results, chosen, worth[chosen.number]), *cliffs(results, chosen)]
    if chosen.number not in validated:
        reasons.append("It was not measured again after the search.")
    return Recommendation(
        trial=chosen,
        verdict=_verdict(chosen, results, worth, kept, missed),
        reasons=tuple(reasons),
        runners_up=tuple(others[:3]),
        gains=_gains(results, chosen),
        deployable=chosen.number not in missed,
        alternatives=alternatives(results, chosen, [t for t in feasible if t.number not in missed], worth, standing),
    )


def instead(results: StudyResults, found: Recommendation, number: int) -> Recommendation:
    """`found`, of another trial of the study: its figures, and whether anything is against deploying it.

    Raises ValueError for a trial that was not measured.
    """
    trial = next((t for t in results.trials if t.number == number), None)
    if trial is None or trial.traffic is None:
        raise ValueError(f"trial {number}: expected one that was measured; tune studies show lists them")
    objection = _objection(results, trial)
    was = "none" if found.trial is None else str(found.trial.number)
    words = objection or ("held when measured again" if number in held(results) else "was not measured again")
    return replace(
        found,
        trial=trial,
        verdict=f"Trial {number} {words}; the study recommends {was}.",
        reasons=(),
        gains=_gains(results, trial),
        deployable=objection is None,
    )


def _objection(results: StudyResults, trial: TrialResult) -> str | None:
    """Why a trial is not to be deployed; None where nothing is known against it."""
    if trial.state != "feasible":
        missed = ", ".join(missed_by(name, value) for name, value in trial.constraints.items() if value > 0)
        return f"is {trial.state}: misses {missed}" if missed else f"is {trial.state}"
    return _missed_validations(results).get(trial.number)


def held(results: StudyResults) -> set[int]:
    """Trials that were measured again after the search and met every constraint each time."""
    return _validated(results) - _missed_validations(results).keys()


def stands(results: StudyResults, trial: TrialResult) -> bool:
    """Whether a trial is feasible; the baseline also where it held when it was measured again. One slow moment in its
    only replay at the study's load must not make way for what serves no more."""
    return trial.state == "feasible" or (trial is results.baseline and trial.number in held(results))


def _furthest(results: StudyResults, stood: Sequence[TrialResult]) -> list[TrialResult]:
    """Of those that held when measured again: those that did so on held-out traffic too, once there is one."""
    through = [trial for trial in stood if replays_of(results, trial.number, "holdout")]
    return through if any(trial.number != results.baseline.number for trial in through) else list(stood)


def slo_margin(trial: TrialResult) -> float:
    """The smallest SLO margin: ln(bound / latency) of the class that is closest to its bound; negative when missed."""
    return min(-value for name, value in trial.constraints.items() if name.startswith("slo:"))


def _ranked(candidates: Sequence[TrialResult], baseline: TrialResult, worth: Mapping[int, Proven]) -> list[TrialResult]:
    """Best first: the tied ones in the order of the tie-break, then the others by their lower bound of goodput."""
    bound = max(worth[trial.number].goodput.low for trial in candidates)

    def key(trial: TrialResult) -> tuple[float, ...]:
        goodput = worth[trial.number].goodput
        tied = trial.on_front and goodput.high >= bound
        margin = round(slo_margin(trial) / MARGIN_STEP)
        quality = round(quality_of(trial).value / QUALITY_STEP)
        tie_break = (-margin, -quality, len(changes(trial, baseline)))
        return (0.0, *tie_break, trial.number) if tied else (1.0, -goodput.low, trial.number)

    return sorted(candidates, key=key)


def _better_than_baseline(
    pool: Sequence[TrialResult], results: StudyResults, worth: Mapping[int, Proven], missed: Mapping[int, str]
) -> list[TrialResult]:
    """Those that are proven to serve more than the baseline; all of them when it is no alternative."""
    baseline = results.baseline
    if not stands(results, baseline) or (baseline.number in missed and any(t.number not in missed for t in pool)):
        return list(pool)
    above = [t for t in pool if worth[t.number].goodput.low > worth[baseline.number].goodput.high]
    # One rung more may be claimed for a mean that lies a hair's breadth above the baseline's.
    sure = {t.number: outdoes(results, t.number, baseline.number) for t in above}
    return [t for t in above if (probability := sure[t.number]) is None or probability >= CONFIDENCE]


def _validated(results: StudyResults) -> set[int]:
    measured = {v.trial for v in results.validations if v.purpose in TESTING}
    return measured | {failure.trial for failure in results.validation_failures if failure.purpose in TESTING}


def _missed_validations(results: StudyResults) -> dict[int, str]:
    """Trial -> in words, how one of its validations failed, or else the worst constraint that it missed wherever it was
    measured for one purpose."""
    measured_again: dict[tuple[int, str], list[ValidationResult]] = {}
    for validation in results.validations:
        if validation.purpose in TESTING:
            measured_again.setdefault((validation.trial, validation.purpose), []).append(validation)
    worst: dict[int, tuple[float, str]] = {}
    for (trial, purpose), measured in measured_again.items():
        misses = [one for one in measured if not one.holds]
        if not misses or shown(results, trial, purpose) is not None:
            continue
        lowest = min(misses, key=lambda one: one.time_scale)
        name, value = max(lowest.constraints.items(), key=lambda item: item[1])
        if value > worst.get(trial, (0.0, ""))[0]:
            where = f"{WINDOWS[purpose]} at {lowest.time_scale:.3g}x"
            worst[trial] = value, f"missed {missed_by(name, value)} on {where}"
    failed = {
        failure.trial: f"failed ({failure.reason}) on {WINDOWS[failure.purpose]} at {failure.time_scale:.3g}x"
        for failure in results.validation_failures
        if failure.purpose in TESTING
    }
    return {trial: words for trial, (_, words) in worst.items()} | failed


def _verdict(
    chosen: TrialResult, results: StudyResults, worth: Mapping[int, Proven], kept: bool, missed: Mapping[int, str]
) -> str:
    found, baseline = worth[chosen.number], results.baseline
    goodput = found.goodput
    served = (
        f"{goodput.value:.2f} good requests/s ({goodput.low:.2f} to {goodput.high:.2f}) "
        f"at {found.time_scale:.3g}x the recorded rate"
    )
    if chosen.number in missed:
        return f"Trial {chosen.number} is the best of the search with {served}, but it {missed[chosen.number]}."
    if kept:
        return f"Keep the baseline: {served}, and no configuration was shown to serve more within the SLOs and floors."
    if baseline.number not in worth:
        return f"Deploy trial {chosen.number}: {served}; the baseline could not be measured."
    before = worth[baseline.number]
    holds = stands(results, baseline) and baseline.number not in missed
    state = "" if holds else ", which misses its constraints,"
    # Of another window than the claim: other requests.
    searched = " in the search" if before.purpose == SEARCH != found.purpose else ""
    return (
        f"Deploy trial {chosen.number}: {served}, where the baseline{state} serves {before.goodput.value:.2f} "
        f"at {before.time_scale:.3g}x{searched}."
    )


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
        verdict=f"No recommendation: nothing is feasible; trial {closest.number} comes closest and misses "
        f"{missed_by(name, value)}.",
        reasons=tuple(_counted(counts, len(measured))),
        gains=_gains(results, closest),
        least_violating=closest,
        binding_constraint=name,
        binding_violation=value,
    )


def _counted(counts: Mapping[str, int], trials: int) -> Iterator[str]:
    """How many trials miss which constraints, the most first."""
    for count in sorted(set(counts.values()), reverse=True):
        names = sorted(name for name, found in counts.items() if found == count)
        yield f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missed by {count} of {trials} trials."


def _gains(results: StudyResults, chosen: TrialResult) -> tuple[Gain, ...]:
    # Latencies under different loads do not compare: both at the recorded rate, or neither there.
    recorded = all(replays_of(results, trial.number, "recorded_rate") for trial in (results.baseline, chosen))
    old, new = (_figures(results, trial, recorded) for trial in (results.baseline, chosen))
    gains = []
    for name in dict.fromkeys([*new, *old]):
        per = "requests" if name.startswith("goodput per ") else "s"
        unit = {"goodput": "requests/s", "quality": "", "load": "x recorded"}.get(name, per)
        before, after = old.get(name), new.get(name)
        values = [figure.value if isinstance(figure, Interval) else figure for figure in (before, after)]
        intervals = [figure if isinstance(figure, Interval) else None for figure in (before, after)]
        gains.append(Gain(name, unit, values[0], values[1], intervals[0], intervals[1]))
    return tuple(gains)


def _figures(results: StudyResults, trial: TrialResult, recorded: bool) -> dict[str, Interval | float]:
    """goodput, also per device-hour and per unit of currency where the cost is known, the load it is served at, quality
    and "<class> p95 <metric>" for what was measured: at the recorded rate, or where the goodput was."""
    figures: dict[str, Interval | float] = {}
    cost = cost_of(results.spec)
    traffic, where = trial.traffic, AT_ITS_LOAD if climbs(results) else ""
    if traffic is not None:
        found = proven(results, trial)
        traffic = found.traffic
        figures["goodput"] = found.goodput
        figures |= {} if cost is None else cost.of(found.goodput)
        figures["load"] = found.time_scale
    if trial.quality is not None:
        figures["quality"] = quality_of(trial)
    if recorded:
        traffic, where = replays_of(results, trial.number, "recorded_rate")[-1].traffic, AT_RECORDED_RATE
    for name, classed in traffic.classes.items() if traffic is not None else ():
        figures |= {f"{name} p95 {metric}{where}": table[95] for metric, table in classed.percentiles.items()}
    return figures
