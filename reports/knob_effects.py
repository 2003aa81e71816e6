"""Goodput by the value of each knob. The other knobs vary too: a pattern here is a hint, not an effect size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from reports.style import COLOURS, FAILED, FEASIBLE, INFEASIBLE, SYMBOLS, figure
from reports.text import knob_value, number, plotly_text
from tuner.results import StudyResults

MOST_CATEGORIES = 9
"""Knobs with more values than this get a numeric axis."""


@dataclass(frozen=True, slots=True)
class Row:
    """One trial in the panel of one knob. goodput: requests/s; None for a failed trial."""

    knob: str
    value: Any
    trial: int
    state: str
    goodput: float | None


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
        sorted((r for r in rows if r.knob in varied), key=lambda r: (varied.index(r.knob), _order(r.value), r.trial))
    )


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then words, then none."""
    if value is None:
        return (2, 0.0, "")
    return (0, float(value), "") if isinstance(value, (int, float)) else (1, 0.0, str(value))


def plot(rows: Sequence[Row]) -> dict[str, go.Figure]:
    """One small figure a knob."""
    return {knob: _panel(knob, [r for r in rows if r.knob == knob]) for knob in dict.fromkeys(r.knob for r in rows)}


def _panel(knob: str, rows: Sequence[Row]) -> go.Figure:
    values = list(dict.fromkeys(row.value for row in rows))
    numeric = len(values) > MOST_CATEGORIES and all(isinstance(value, (int, float)) for value in values)
    shown = figure(230, showlegend=False, margin={"l": 52, "r": 12, "t": 34, "b": 40})
    shown.update_layout(title={"text": plotly_text(knob), "font": {"size": 14}, "x": 0.02, "y": 0.97})
    for state in (INFEASIBLE, FEASIBLE, FAILED):
        here = [row for row in rows if row.state == state]
        shown.add_scatter(
            x=[row.value if numeric else plotly_text(knob_value(knob, row.value)) for row in here],
            y=[row.goodput if row.goodput is not None else 0.0 for row in here],
            mode="markers",
            name=state,
            cliponaxis=False,
            marker={"symbol": SYMBOLS[state], "size": 9, "color": COLOURS[state], "line": {"width": 1.5},
                    "opacity": 0.8},
            hoverinfo="text",
            hovertext=[_hover(row) for row in here],
        )  # fmt: skip
    shown.update_yaxes(title_text="requests/s", rangemode="tozero", nticks=5)
    if not numeric:
        labels = [plotly_text(knob_value(knob, value)) for value in values]
        shown.update_xaxes(type="category", categoryorder="array", categoryarray=labels)
    return shown


def _hover(row: Row) -> str:
    measured = "not measured, drawn at 0" if row.goodput is None else f"{number(row.goodput)} requests/s"
    return f"trial {row.trial}, {row.state}<br>{plotly_text(knob_value(row.knob, row.value))}: {measured}"
