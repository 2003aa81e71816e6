"""The report of a study."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reports import (
    alternatives,
    assurance,
    comparison,
    doubts,
    knob_effects,
    knob_importances,
    latency_distribution,
    pareto_front,
    protocol,
    quality_slices,
    recall_grid,
    scenarios,
    sections,
    single_changes,
    slo_compliance,
    speculation_domains,
    study_history,
    text,
    timeline,
    trial_cards,
    trial_table,
    verifications,
)
from reports.evidence import NOTHING, Evidence
from reports.knob_section import changes, knobs
from reports.parts import Section
from reports.quality_section import quality
from reports.template import render
from tuner.recommend import Recommendation
from tuner.results import StudyResults
from tuner.retune import conditions, retune_when
from tuner.worth import replays_of

STATES = ("feasible", "infeasible", "doubtful", "failed", "running")


def write_report(
    results: StudyResults, recommendation: Recommendation, path: Path, evidence: Evidence = NOTHING
) -> None:
    """Write the report of a study to `path`, replacing it. evidence: raw records, for the figures that need them.

    Raises OSError when it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render("page.html.jinja", _content(results, recommendation, evidence)), encoding="utf-8")


def _content(results: StudyResults, recommendation: Recommendation, evidence: Evidence) -> dict[str, Any]:
    chosen = recommendation.trial
    number = None if chosen is None else chosen.number
    sure = assurance.info(results, recommendation, evidence)
    return {
        "results": results,
        "recommendation": recommendation,
        "feasible": sum(trial.state == "feasible" for trial in results.trials),
        "sure": assurance.sentence(sure),
        "configuration": "" if chosen is None else trial_cards.configuration(chosen, results),
        "chosen": number,
        "cards": trial_cards.info(results, recommendation, tail_name(results)),
        "sections": tuple(_sections(results, recommendation, evidence, sure)),
    }


def _sections(
    results: StudyResults, recommendation: Recommendation, evidence: Evidence, sure: tuple[assurance.Row, ...]
) -> Iterator[Section]:
    chosen = recommendation.trial
    number = None if chosen is None else chosen.number
    if sure:
        yield sections.assured(sure)
    tail = tail_name(results)
    counts = {state: sum(trial.state == state for trial in results.trials) for state in STATES}
    yield sections.compared(comparison.info(recommendation), results.baseline, chosen)
    yield sections.front(pareto_front.info(results, number), tail, counts["feasible"])
    if others := alternatives.info(recommendation):
        yield alternatives.section(others, tail)
    yield sections.compliance(slo_compliance.info(results, number))
    if curves := latency_distribution.info(results, number, evidence):
        yield sections.latencies(curves)
    grid, domains = (one.info(results, number, evidence) for one in (recall_grid, speculation_domains))
    yield quality(quality_slices.info(results, number), grid, domains)
    if taken_back := single_changes.info(results, recommendation):
        yield changes(taken_back)
    yield knobs(knob_effects.info(results), knob_importances.analyses(results))
    yield protocol.robustness(scenarios.info(results, number))
    if since := verifications.info(results, evidence):
        yield verifications.section(since, number)
    history, reasons = study_history.info(results), study_history.reasons(results)
    yield protocol.course(history, reasons, timeline.info(results, evidence), counts, results.search_end)
    yield sections.trials(trial_table.info(results, number), tail)
    yield protocol.surroundings(results, (load_in_words(results), f"Rule of the recommendation: {recommendation.rule}"))
    when = retune_when(results, recommendation)
    yield sections.doubted(doubts.info(results, number), () if when is None else conditions(when))


def tail_name(results: StudyResults) -> str:
    """The tail-latency objective in words, for example "p95 TTFT, chat"."""
    tail = results.spec.tail
    return f"p{tail.percentile:g} {tail.metric.upper()}, {tail.slo_class}"


def load_in_words(results: StudyResults) -> str:
    """At which load the trials were replayed, and what that means for the comparison."""
    times = "" if results.time_scale == 1 else f"{text.plain(results.time_scale)} times "
    pace = f"at {times}its recorded pace"
    if results.spec.traffic.time_scale == "auto":
        here = [one.holds for one in replays_of(results, 0, "calibration") if one.time_scale == results.time_scale]
        found = "the highest load found that the baseline holds" if any(here) else "which the baseline misses"
        return (
            f"The first trials replayed the recorded window {pace}, {found}. Each trial began where the best one "
            "before it stood and climbed, load by load, while it met its SLOs and floors; its goodput in the search is "
            "that of the highest load held, or of the lowest that it was tried at and missed."
        )
    return f"Trials replayed the recorded window {pace}, the load that the study file gives."
