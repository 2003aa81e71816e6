"""Goodput against quality and against the tail, every measured trial, with baseline and recommended marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from reports.style import (
    BASELINE,
    COLOURS,
    FEASIBLE,
    GREY,
    INFEASIBLE,
    PURPLE,
    RECOMMENDED,
    SYMBOLS,
    figure,
    rounded,
    seconds_axis,
)
from reports.text import plotly_text
from tuner.results import StudyResults

QUALITY, TAIL = "quality", "tail_latency"
FRONT = "on the front"
LOOKS = {**SYMBOLS, FRONT: "circle", FEASIBLE: "circle-open"}


@dataclass(frozen=True, slots=True)
class Row:
    """One trial, measured in full. role: "baseline", "recommended" or "". goodput: requests/s; tail_latency: s."""

    trial: int
    state: str
    role: str
    goodput: float
    quality: float
    tail_latency: float
    on_front: bool
    knobs: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """What it is drawn as."""
        return self.role or (FRONT if self.on_front else self.state)


def info(results: StudyResults, recommended: int | None) -> tuple[Row, ...]:
    """One row for each trial whose goodput and quality were measured, in the order of trials."""
    rows = []
    for trial in results.trials:
        if trial.objectives is not None and trial.quality is not None:
            role = BASELINE if trial is results.baseline else ""
            role = RECOMMENDED if trial.number == recommended else role
            rows.append(Row(trial.number, trial.state, role, *trial.objectives, trial.on_front, trial.knobs))
    return tuple(rows)


def staircase(rows: Sequence[Row], against: str = QUALITY) -> tuple[tuple[float, float], ...]:
    """(goodput, value) of the feasible trials that no feasible trial beats in both, from low goodput to high.

    against: quality, where more is better, or tail_latency, where less is.
    """
    sign = 1 if against == QUALITY else -1
    points = [(row.goodput, getattr(row, against)) for row in rows if row.state == FEASIBLE]
    steps: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (-point[0], -sign * point[1])):
        if not steps or sign * y > sign * steps[-1][1]:
            steps.append((x, y))
    return tuple(reversed(steps))


def plot(rows: Sequence[Row], tail_name: str) -> dict[str, go.Figure]:
    """Goodput against quality, and against the tail-latency objective, called tail_name."""
    words = {QUALITY: "quality (1 = reference)", TAIL: plotly_text(tail_name)}
    return {against: _plane(rows, against, title) for against, title in words.items()}


def _plane(rows: Sequence[Row], against: str, title: str) -> go.Figure:
    shown = figure(420, hovermode="closest")
    steps = staircase(rows, against)
    shown.add_scatter(
        x=[x for x, _ in steps], y=[y for _, y in steps], mode="lines", name="best of both",
        line={"shape": "vh" if against == QUALITY else "hv", "color": GREY, "width": 1, "dash": "dot"},
        hoverinfo="skip",
    )  # fmt: skip
    for kind in (INFEASIBLE, FEASIBLE, FRONT, BASELINE, RECOMMENDED):
        here = [row for row in rows if row.kind == kind]
        if here:
            shown.add_trace(_markers(here, kind, against))
    # The page's script puts what is selected here.
    shown.add_scatter(
        x=[], y=[], mode="markers", name="selected", showlegend=False, hoverinfo="skip", meta={"selected": against},
        marker={"symbol": "circle-open", "size": 26, "color": PURPLE, "line": {"width": 3}},
    )  # fmt: skip
    shown.update_xaxes(title_text="goodput (requests/s)")
    shown.update_yaxes(title_text=title)
    if against == TAIL:
        shown.update_yaxes(seconds_axis([row.tail_latency for row in rows]))
    return shown


def _markers(rows: Sequence[Row], kind: str, against: str) -> go.Scatter:
    """customdata: the trials' numbers; from them the page's script tells the whole configuration, and selects."""
    labelled = kind in (BASELINE, RECOMMENDED)
    missed = labelled and any(row.state == INFEASIBLE for row in rows)
    colour = COLOURS.get(kind, COLOURS[FEASIBLE])
    return go.Scatter(
        x=rounded(row.goodput for row in rows),
        y=rounded(getattr(row, against) for row in rows),
        customdata=[row.trial for row in rows],
        mode="markers+text" if labelled else "markers",
        name=f"{kind} (infeasible)" if missed else kind,
        text=f"<b>{kind}</b>" if labelled else None,
        # Away from the nearer edge, and from each other.
        textposition="top left" if kind == RECOMMENDED else "bottom right",
        cliponaxis=False,
        marker={"symbol": LOOKS[kind], "size": 16 if labelled else 11, "color": colour, "opacity": 0.85},
        hoverinfo="text",
    )
