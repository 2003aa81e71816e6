"""Goodput by the value of each knob: the trials as they are, and what the knob does by itself as far as they tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from reports.style import COLOURS, FAILED, FEASIBLE, GREEN, INFEASIBLE, SYMBOLS, figure, rounded
from reports.text import interval, knob_value, plotly_text
from tuner.anova import Anova, order
from tuner.results import StudyResults
from tuner.scoring.metrics import Interval

MOST_CATEGORIES = 9
"""Knobs with more values than this get a numeric axis."""
STANDARD_ERRORS = 1.96
"""From the middle of a 95 % interval to its ends."""


@dataclass(frozen=True, slots=True)
class Row:
    """One trial in the panel of one knob. goodput: requests/s; None for a failed trial."""

    knob: str
    value: Any
    trial: int
    state: str
    goodput: float | None


@dataclass(frozen=True, slots=True)
class Effect:
    """Goodput (requests/s, 95 %) at one value of a knob, the others averaged over theirs."""

    knob: str
    value: Any
    goodput: Interval


def info(results: StudyResults) -> tuple[Row, ...]:
    """A row for each ended trial and each knob that took more than one value, by knob, value and trial."""
    ended = [trial for trial in results.trials if trial.state != "running"]
    rows = [
        Row(name, value, trial.number, trial.state, None if trial.objectives is None else trial.objectives[0])
        for trial in ended
        for name, value in trial.knobs.items()
    ]
    values: dict[str, set[Any]] = {}
    for row in rows:
        values.setdefault(row.knob, set()).add(row.value)
    varied = [name for name, seen in values.items() if len(seen) > 1]
    return tuple(
        sorted((r for r in rows if r.knob in varied), key=lambda r: (varied.index(r.knob), order(r.value), r.trial))
    )


def effects(found: Anova | None) -> tuple[Effect, ...]:
    """Rows by knob, the most important first, and value."""
    if found is None:
        return ()
    return tuple(
        Effect(one.knob, level, Interval(middle, middle - STANDARD_ERRORS * error, middle + STANDARD_ERRORS * error))
        for one in found.effects
        for level, effect, error in zip(one.levels, one.effect, one.error, strict=True)
        for middle in (found.mean + effect,)
    )


def plot(rows: Sequence[Row], alone: Sequence[Effect] = ()) -> dict[str, go.Figure]:
    """One small figure a knob, the most important first."""
    varied = dict.fromkeys(row.knob for row in rows)
    knobs = dict.fromkeys([*(one.knob for one in alone if one.knob in varied), *varied])
    return {
        knob: _panel(knob, [r for r in rows if r.knob == knob], [one for one in alone if one.knob == knob])
        for knob in knobs
    }


def _panel(knob: str, rows: Sequence[Row], alone: Sequence[Effect]) -> go.Figure:
    values = list(dict.fromkeys([*(row.value for row in rows), *(one.value for one in alone)]))
    known = [row.goodput for row in rows if row.goodput is not None]
    bottom = min(known, default=0.0) - 0.08 * (max(known, default=0.0) - min(known, default=0.0))
    numeric = len(values) > MOST_CATEGORIES and all(isinstance(row.value, (int, float)) for row in rows)
    alone = [one for one in alone if one.value is not None or not numeric]
    shown = figure(230, showlegend=False, margin={"l": 52, "r": 12, "t": 34, "b": 40})
    shown.update_layout(title={"text": plotly_text(knob), "font": {"size": 14}, "x": 0.02, "y": 0.97})
    for state in (INFEASIBLE, FEASIBLE, FAILED):
        here = [row for row in rows if row.state == state]
        shown.add_scatter(
            x=[row.value if numeric else plotly_text(knob_value(knob, row.value)) for row in here],
            y=rounded(bottom if row.goodput is None else row.goodput for row in here),
            customdata=[row.trial for row in here],
            mode="markers",
            name=state,
            cliponaxis=False,
            marker={"symbol": SYMBOLS[state], "size": 9, "color": COLOURS[state], "opacity": 0.8,
                    "line": {"width": 0 if state == FEASIBLE else 1.5}},
            hovertemplate=_template(state),
        )  # fmt: skip
    shown.add_scatter(
        x=[one.value if numeric else plotly_text(knob_value(knob, one.value)) for one in alone],
        y=[one.goodput.value for one in alone], mode="lines+markers" if numeric else "markers", name="by itself",
        line={"color": GREEN, "width": 2}, marker={"symbol": "line-ew-open", "size": 12, "line": {"width": 3}},
        error_y={"type": "data", "array": [one.goodput.high - one.goodput.value for one in alone], "thickness": 1.5},
        hoverinfo="text", hovertext=[f"by itself: {interval(one.goodput)} requests/s" for one in alone],
    )  # fmt: skip
    shown.update_yaxes(title_text="requests/s", nticks=5)
    if not numeric:
        labels = [plotly_text(knob_value(knob, value)) for value in values]
        shown.update_xaxes(type="category", categoryorder="array", categoryarray=labels)
    return shown


def _template(state: str) -> str:
    """customdata: the trial's number."""
    measured = "not measured" if state == FAILED else "%{y:.3g} requests/s"
    return f"trial %{{customdata}}, {state}<br>%{{x}}: {measured}<extra></extra>"
