"""What each change from the baseline buys: the recommendation with one change taken back at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from reports.style import BASELINE, BLUE, COLOURS, RECOMMENDED, SYMBOLS, figure
from reports.text import interval, knob_value, plain, plotly_text, wrapped
from tuner.recommend import Recommendation
from tuner.results import StudyResults, TrialResult, ValidationResult
from tuner.scoring.metrics import Interval
from tuner.worth import holding, proven, shown

ABLATION = "ablation"
WITHOUT = "without "
"""Before the knob's name, in the window of such a measurement (tuner.examination)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration: "baseline", "recommended", or the recommended one without its change of `knob`.

    before, after: the knob's value in the baseline and in the recommendation; None as well where it has none.
    time_scale: highest load held, or where none was the lowest that was tried; goodput there, requests/s.
    """

    configuration: str
    knob: str
    before: Any
    after: Any
    time_scale: float
    holds: bool
    goodput: Interval


def info(results: StudyResults, recommendation: Recommendation) -> tuple[Row, ...]:
    """Baseline, recommended, then a row for each change that was taken back, the one that buys the most first."""
    chosen, baseline = recommendation.trial, results.baseline
    if chosen is None or chosen is baseline:
        return ()
    found: dict[str, list[ValidationResult]] = {}
    for one in results.validations:
        if (one.trial, one.purpose) == (chosen.number, ABLATION):
            found.setdefault(one.window.removeprefix(WITHOUT), []).append(one)
    if not found:
        return ()
    ends = []
    for name, trial in ((BASELINE, baseline), (RECOMMENDED, chosen)):
        if trial.traffic is not None:
            load, goodput = _whole(results, trial)
            ends.append(Row(name, "", None, None, load, trial.state == "feasible", goodput))
    rows = [_row(knob, baseline.knobs.get(knob), chosen.knobs.get(knob), measured) for knob, measured in found.items()]
    return (*ends, *sorted(rows, key=lambda row: (row.holds, row.goodput.value)))


def _whole(results: StudyResults, trial: TrialResult) -> tuple[float, Interval]:
    """The load that a configuration is worth, and its goodput there of the tuning window, on which changes are taken
    back: other windows hold other requests."""
    worth = proven(results, trial)
    tuned = shown(results, trial.number, "repeat") or worth
    less = worth.time_scale / tuned.time_scale
    goodput = tuned.goodput
    return worth.time_scale, Interval(goodput.value * less, goodput.low * less, goodput.high * less)


def _row(knob: str, before: Any, after: Any, measured: Sequence[ValidationResult]) -> Row:
    held = max(holding(measured), key=lambda one: one.time_scale, default=None)
    decisive = held or min(measured, key=lambda one: one.time_scale)
    return Row(f"{WITHOUT}{knob}", knob, before, after, decisive.time_scale, held is not None, decisive.traffic.goodput)


def plot(rows: Sequence[Row]) -> go.Figure:
    """Goodput of each configuration with its interval; hollow where no load held."""
    shown = figure(110 + 36 * len(rows), showlegend=False)
    for row in rows:
        colour = COLOURS.get(row.configuration, BLUE)
        shown.add_scatter(
            x=[row.goodput.value], y=[wrapped(row.configuration)], mode="markers",
            error_x={"type": "data", "array": [row.goodput.high - row.goodput.value],
                     "arrayminus": [row.goodput.value - row.goodput.low], "color": colour},
            marker={"symbol": SYMBOLS.get(row.configuration, "circle") + ("" if row.holds else "-open"), "size": 12,
                    "color": colour}, hoverinfo="text",
            hovertext=[f"{plotly_text(row.configuration)}<br>{interval(row.goodput)} requests/s at "
                       f"{plain(row.time_scale)}x{_instead(row)}"],
        )  # fmt: skip
    shown.update_xaxes(title_text="goodput (requests/s)")
    shown.update_yaxes(type="category", autorange="reversed")
    return shown


def _instead(row: Row) -> str:
    if not row.knob:
        return ""
    return plotly_text(f", {knob_value(row.knob, row.before)} instead of {knob_value(row.knob, row.after)}")
