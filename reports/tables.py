"""The figures' tables as CSV files: what a figure shows, to compute with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from reports import (
    alternatives,
    assurance,
    comparison,
    doubts,
    knob_effects,
    knob_importances,
    latency_distribution,
    pareto_front,
    quality_slices,
    recall_grid,
    scenarios,
    single_changes,
    slo_compliance,
    speculation_domains,
    study_history,
    timeline,
    trial_table,
    verifications,
)
from reports.evidence import Evidence
from tuner.recommend import Recommendation
from tuner.results import StudyResults
from tuner.scoring.metrics import Interval

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection)."""


def tables(results: StudyResults, recommendation: Recommendation, evidence: Evidence) -> dict[str, pd.DataFrame]:
    """One tidy table a figure, by the figure's name; a figure without data has a table without rows."""
    number = None if recommendation.trial is None else recommendation.trial.number
    found, clock = knob_importances.analyses(results), timeline.info(results, evidence)
    alone = knob_effects.effects(found.get(knob_importances.GOODPUT))
    return {
        "assurance": frame(assurance.info(results, recommendation, evidence), assurance.Row),
        "comparison": frame(comparison.info(recommendation), comparison.Row),
        "pareto_front": frame(pareto_front.info(results, number), pareto_front.Row),
        "alternatives": frame(alternatives.info(recommendation), alternatives.Row),
        "slo_compliance": frame(slo_compliance.info(results, number), slo_compliance.Row),
        "latency_distribution": frame(latency_distribution.info(results, number, evidence), latency_distribution.Row),
        "quality_slices": frame(quality_slices.info(results, number), quality_slices.Row),
        "recall_grid": frame(recall_grid.info(results, number, evidence), recall_grid.Row),
        "speculation_domains": frame(speculation_domains.info(results, number, evidence), speculation_domains.Row),
        "knob_values": frame(knob_effects.info(results), knob_effects.Row),
        "knob_effects": frame(alone, knob_effects.Effect),
        "knob_importances": frame(knob_importances.info(found), knob_importances.Row),
        "single_changes": frame(single_changes.info(results, recommendation), single_changes.Row),
        "scenarios": frame(scenarios.info(results, number), scenarios.Row),
        "calibration": frame(scenarios.calibration(results), scenarios.Row),
        "study_history": frame(study_history.info(results), study_history.Row),
        "reasons": frame(study_history.reasons(results), study_history.Reason),
        "timeline": frame(clock, timeline.Row),
        "trials": frame(trial_table.info(results, number), trial_table.Row),
        "verifications": frame(verifications.info(results, evidence), verifications.Row),
        "doubts": frame(doubts.info(results, number), doubts.Row),
    }


def frame(rows: Sequence[Any], kind: type) -> pd.DataFrame:
    """Dataclass rows of `kind` as a table. An Interval, known or not, becomes NAME, NAME_low, NAME_high; a mapping
    NAME.KEY for each key; a tuple its members with spaces between."""
    flat = [dict(_flat(row)) for row in rows]
    columns = dict.fromkeys(name for row in flat for name in row) or [field.name for field in fields(kind)]
    return pd.DataFrame(flat, columns=list(columns), dtype=object)


def _flat(row: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Interval):
            yield from ((field.name, value.value), (f"{field.name}_low", value.low), (f"{field.name}_high", value.high))
        elif value is None and "Interval" in str(field.type):
            yield from ((f"{field.name}{end}", None) for end in ("", "_low", "_high"))
        elif isinstance(value, Mapping):
            yield from ((f"{field.name}.{key}", one) for key, one in value.items())
        else:
            yield field.name, " ".join(map(str, value)) if isinstance(value, tuple) else value


def write_tables(found: Mapping[str, pd.DataFrame], directory: Path) -> list[Path]:
    """Write DIRECTORY/NAME.csv for each table, replacing it; texts that a spreadsheet would compute get a quote before
    them. Raises OSError when a file cannot be written."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in found.items():
        path = directory / f"{name}.csv"
        table.rename(columns=_harmless).map(_harmless).to_csv(path, index=False, lineterminator="\n")
        paths.append(path)
    return paths


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
