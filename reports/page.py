"""The report of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reports import comparison, doubts, knob_effects, pareto_front, quality_slices, slo_compliance, study_history, text
from reports import trial_table as trials
from reports.template import render
from tuner.recommend import Recommendation
from tuner.results import StudyResults

STATES = ("feasible", "infeasible", "doubtful", "failed", "running")


def write_report(results: StudyResults, recommendation: Recommendation, path: Path) -> None:
    """Write the report of a study to `path`, replacing it. Raises OSError when it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render("page.html.jinja", _content(results, recommendation)), encoding="utf-8")


def _content(results: StudyResults, recommendation: Recommendation) -> dict[str, Any]:
    number = None if recommendation.trial is None else recommendation.trial.number
    fronts = pareto_front.info(results, number)
    slos = slo_compliance.info(results, number)
    slices = quality_slices.info(results, number)
    history = study_history.info(results)
    return {
        "results": results,
        "recommendation": recommendation,
        "chosen": number,
        "comparison": comparison.info(results, number),
        "tail": tail_name(results),
        "pareto": (fronts, pareto_front.plot(fronts, tail_name(results))),
        "slo": (slos, slo_compliance.plot(slos)),
        "quality": (slices, quality_slices.plot(slices)),
        "quality_units": quality_slices.UNITS,
        "knobs": knob_effects.plot(knob_effects.info(results)),
        "history": (history, study_history.plot(history)),
        "reasons": study_history.reasons(results),
        "table": trials.table(trials.info(results, number)),
        "states": {state: sum(t.state == state for t in results.trials) for state in STATES},
        "load": load_in_words(results),
        "facts": tuple(text.flat({"environment": results.environment, "provenance": results.provenance})),
        "doubts": doubts.info(results, number),
    }


def tail_name(results: StudyResults) -> str:
    """The tail-latency objective in words, for example "p95 TTFT, chat"."""
    tail = results.spec.tail
    return f"p{tail.percentile:g} {tail.metric.upper()}, {tail.slo_class}"


def load_in_words(results: StudyResults) -> str:
    """How fast the recorded window was replayed in the trials, and what that means for the comparison."""
    scale = results.time_scale
    missed = [name for name, value in results.baseline.constraints.items() if name.startswith("slo:") and value > 0]
    pace = "at its recorded pace" if scale == 1 else f"{text.plain(scale)} times faster than recorded"
    if missed:
        return f"Trials replayed the recorded window {pace}, past the knee of the baseline: it misses its SLOs there."
    return (
        f"Trials replayed the recorded window {pace}. The baseline meets its SLOs at that load, so no configuration "
        "can show much more goodput than the requests offered."
    )
