"""What each slice of the probes loses against the full-precision reference, and what it may lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from reports.style import BASELINE, COLOURS, GREY, RECOMMENDED, SYMBOLS, axes, compared, figure
from reports.text import decimals, plotly_text
from tuner.results import StudyResults
from tuner.scoring.quality import SliceQuality

UNITS = {"forced": "nats per token", "recall": "share of right answers lost"}


@dataclass(frozen=True, slots=True)
class Row:
    """One slice under one configuration; losses and the floor in the unit of the kind (UNITS), lower is better.

    bound: one-sided 95 % upper bound of the loss, the number that is held against allowed.
    """

    slice: str
    kind: str
    role: str
    probes: int
    loss: float | None
    bound: float | None
    allowed: float
    holds: bool


def info(results: StudyResults, recommended: int | None) -> tuple[Row, ...]:
    """Rows by kind, then slice, then role."""
    rows = [
        _row(role, one)
        for role, trial in compared(results, recommended)
        if trial.quality is not None
        for one in trial.quality.slices
    ]
    return tuple(sorted(rows, key=lambda r: (r.kind, r.slice, r.role != BASELINE)))


def _row(role: str, one: SliceQuality) -> Row:
    if one.kind == "forced":
        loss, bound, allowed = one.nll_increase, one.nll_increase_upper, one.floor
    else:
        loss, bound, allowed = _complement(one.retention), _complement(one.retention_lower), 1 - one.floor
    return Row(one.name, one.kind, role, one.probes, loss, bound, allowed, one.violation <= 0)


def _complement(share: float | None) -> float | None:
    return None if share is None else 1 - share


def plot(rows: Sequence[Row]) -> go.Figure:
    """One panel a kind of probe: the loss as a marker, its bound as a whisker, what is allowed as a tick."""
    kinds = list(dict.fromkeys(row.kind for row in rows)) or ["forced"]
    slices = {kind: list(dict.fromkeys(r.slice for r in rows if r.kind == kind)) for kind in kinds}
    heights = [len(slices[kind]) + 1 for kind in kinds]
    total = 110 + 44 * sum(heights)
    panels = make_subplots(rows=len(kinds), cols=1, row_heights=heights, vertical_spacing=min(0.4, 90 / total))
    panels.update_layout(figure(total, scattermode="group").layout)
    for position, kind in enumerate(kinds, start=1):
        here = [row for row in rows if row.kind == kind]
        for role in (BASELINE, RECOMMENDED):
            panels.add_trace(_losses([r for r in here if r.role == role], role, position == 1), position, 1)
        panels.add_trace(_allowed(here, position == 1), position, 1)
        panels.update_xaxes(title_text=f"loss ({UNITS[kind]})", range=_range(here), row=position, col=1)
    panels.update_yaxes(autorange="reversed", type="category")
    return axes(panels)


def _range(rows: Sequence[Row]) -> tuple[float, float]:
    """All losses, bounds and floors with some room; computed here because grouped markers upset Plotly's own range."""
    values = [v for row in rows for v in (row.loss, row.bound, row.allowed, 0.0) if v is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.06 * (high - low or 1.0)
    return low - room, high + room


def _losses(rows: Sequence[Row], role: str, in_legend: bool) -> go.Scatter:
    whiskers = [0.0 if r.loss is None or r.bound is None else r.bound - r.loss for r in rows]
    return go.Scatter(
        x=[row.loss for row in rows],
        y=[plotly_text(row.slice) for row in rows],
        error_x={"type": "data", "array": whiskers, "arrayminus": [0.0] * len(rows), "color": COLOURS[role]},
        mode="markers",
        orientation="h",
        name=role,
        legendgroup=role,
        showlegend=in_legend,
        offsetgroup=role,
        marker={"symbol": SYMBOLS[role], "size": 11, "color": COLOURS[role]},
        hoverinfo="text",
        hovertext=[
            f"{role}, {plotly_text(r.slice)}<br>loss {decimals(r.loss)}, at most {decimals(r.bound)} (95 %)<br>"
            f"allowed {decimals(r.allowed)} {UNITS[r.kind]}, {r.probes} probes"
            for r in rows
        ],
    )


def _allowed(rows: Sequence[Row], in_legend: bool) -> go.Scatter:
    floors = {row.slice: row.allowed for row in rows}
    return go.Scatter(
        x=list(floors.values()),
        y=[plotly_text(name) for name in floors],
        mode="markers",
        name="allowed",
        legendgroup="allowed",
        showlegend=in_legend,
        marker={"symbol": "line-ns-open", "size": 22, "color": GREY, "line": {"width": 3}},
        hoverinfo="text",
        hovertext=[f"{plotly_text(name)}: {decimals(floor)} allowed" for name, floor in floors.items()],
    )
