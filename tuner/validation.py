"""After the search: the baseline and the finalists measured again, on their own window and on the held-out one.

Winners of a noisy race disappoint, and at the edge of what it holds a configuration may fail on other traffic of the
same kind: where one misses, it is measured further down the ladder, and what it holds there is what it is worth.
"""

from __future__ import annotations

from tuner import ladder
from tuner.bench import Bench
from tuner.errors import ServingError
from tuner.outcome import disqualifying_doubt
from tuner.recommend import held, recommend
from tuner.results import StudyResults, load_results
from tuner.serving.measurement import Purpose
from tuner.stored import ValidationFailure

DESCENT = 3
"""Rungs that a finalist may fall on one window; one that holds even less was no finalist."""


def validate(bench: Bench) -> None:
    """Measure the baseline and the finalists again; the chosen one and the baseline at the recorded rate too.

    When no finalist holds, the next runners-up are tried.
    """
    for failure in _results(bench).validation_failures:
        _measure_again(bench, failure.trial, (failure.purpose,))
    best, finalists = recommend(_results(bench)), bench.plan.spec.budget.finalists
    ranked = [t.number for t in (best.trial, *best.runners_up) if finalists and t is not None and t.number != 0]
    tests: tuple[Purpose, ...] = ("repeat", "holdout") if "holdout" in bench.plan.windows else ("repeat",)
    _measure_again(bench, 0, tests)
    for tested, number in enumerate(ranked):
        if tested >= finalists and held(_results(bench)) - {0}:
            break
        _measure_again(bench, number, tests)
    chosen = recommend(_results(bench)).trial
    for number in dict.fromkeys((0, chosen.number if chosen is not None else 0)):
        _measure_again(bench, number, ("recorded_rate",))


def next_scale(results: StudyResults, number: int, purpose: Purpose) -> float | None:
    """Where a trial is to be measured next for this purpose; None when enough is known."""
    tried = [one for one in results.validations if (one.trial, one.purpose) == (number, purpose)]
    if purpose == "recorded_rate":
        return None if tried else 1.0
    if not tried:
        return results.trials[number].time_scale or results.time_scale
    fixed = results.spec.traffic.time_scale != "auto"
    if fixed or len(tried) > DESCENT or any(one.holds or one.misses_quality for one in tried):
        return None
    return ladder.below(min(one.time_scale for one in tried))


def _measure_again(bench: Bench, number: int, tests: tuple[Purpose, ...]) -> None:
    """What of `tests` this trial has not passed through yet; one that failed earlier is tried once more."""
    for purpose in tests:
        while (scale := next_scale(_results(bench), number, purpose)) is not None:
            if not _measure(bench, number, purpose, scale):
                break


def _results(bench: Bench) -> StudyResults:
    return load_results(bench.store, bench.study_name)


def _measure(bench: Bench, number: int, purpose: Purpose, scale: float) -> bool:
    """Measure one configuration again. A failure is stored: it counts until a resumed study has measured this."""
    config = bench.plan.config(_results(bench).trials[number].knobs)
    window = "holdout" if purpose == "holdout" else "tune"
    bench.report.begin(f"{purpose.replace('_', ' ')} of trial {number}")
    bench.report.at(scale)
    try:
        measured = bench.measure(number, config, bench.plan.load(window, scale), purpose)
    except ServingError as error:
        reason, detail = error.reason, str(error)
    else:
        if (doubt := disqualifying_doubt(bench.plan, measured)) is None:
            return True
        reason, detail = doubt.name, doubt.detail
    failure = ValidationFailure(number, purpose, window, scale, reason, detail)
    bench.store.save_validation_failure(bench.study_name, failure)
    bench.report.note(f"{purpose} of trial {number} failed: {reason}: {detail}")
    return False
