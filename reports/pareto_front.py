"""Goodput against quality, every measured trial, with baseline and recommendation marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from reports.style import BASELINE, COLOURS, FEASIBLE, GREY, INFEASIBLE, RECOMMENDED, SYMBOLS, figure
from reports.text import knob_value, number, plotly_text, seconds
from tuner.results import StudyResults

SMALLEST, LARGEST = 10.0, 26.0


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


def info(results: StudyResults, recommended: int | None) -> tuple[Row, ...]:
    """One row for each trial whose goodput and quality were measured, in the order of trials."""
    rows = []
    for trial in results.trials:
        if trial.objectives is not None and trial.quality is not None:
            role = BASELINE if trial is results.baseline else ""
            role = RECOMMENDED if trial.number == recommended else role
            rows.append(Row(trial.number, trial.state, role, *trial.objectives, trial.on_front, trial.knobs))
    return tuple(rows)


def staircase(rows: Sequence[Row]) -> tuple[tuple[float, float], ...]:
    """(goodput, quality) of the feasible trials that no feasible trial beats in both, from low goodput to high."""
    steps: list[tuple[float, float]] = []
    for row in sorted((r for r in rows if r.state == FEASIBLE), key=lambda r: (-r.goodput, -r.quality)):
        if not steps or row.quality > steps[-1][1]:
            steps.append((row.goodput, row.quality))
    return tuple(reversed(steps))


def plot(rows: Sequence[Row], tail_name: str) -> go.Figure:
    """tail_name: the tail-latency objective in words; it is the size of a marker."""
    shown = figure(440, hovermode="closest")
    steps = staircase(rows)
    shown.add_scatter(
        x=[x for x, _ in steps], y=[y for _, y in steps], mode="lines", name="best of goodput and quality",
        line={"shape": "vh", "color": GREY, "width": 1, "dash": "dot"}, hoverinfo="skip",
    )  # fmt: skip
    sizes = _sizes(rows)
    for state in (INFEASIBLE, FEASIBLE):
        _add(shown, [r for r in rows if r.state == state and not r.role], state, tail_name, sizes)
    for role in (BASELINE, RECOMMENDED):
        _add(shown, [r for r in rows if r.role == role], role, tail_name, sizes)
    shown.update_xaxes(title_text="goodput (requests/s)", rangemode="tozero")
    shown.update_yaxes(title_text="quality (1 = reference)")
    return shown


def _sizes(rows: Sequence[Row]) -> dict[int, float]:
    """Marker diameters in pixels, linear in the tail latency."""
    tails = [row.tail_latency for row in rows]
    low, span = min(tails, default=0.0), (max(tails, default=0.0) - min(tails, default=0.0)) or 1.0
    return {row.trial: SMALLEST + (LARGEST - SMALLEST) * (row.tail_latency - low) / span for row in rows}


def _add(shown: go.Figure, rows: Sequence[Row], kind: str, tail_name: str, sizes: Mapping[int, float]) -> None:
    labelled = kind in (BASELINE, RECOMMENDED)
    colour = COLOURS[kind]
    missed = labelled and any(row.state == INFEASIBLE for row in rows)
    shown.add_scatter(
        x=[row.goodput for row in rows],
        y=[row.quality for row in rows],
        mode="markers+text" if labelled else "markers",
        name=f"{kind} (infeasible)" if missed else kind,
        text=[f"<b>{kind}</b>"] * len(rows),
        # Away from the nearer edge, and from each other.
        textposition="top left" if kind == RECOMMENDED else "bottom right",
        cliponaxis=False,
        marker={
            "symbol": SYMBOLS[kind],
            "size": [max(sizes[row.trial], 16.0) if labelled else sizes[row.trial] for row in rows],
            "color": colour,
            "opacity": 0.85,
            "line": {"color": [colour if kind == INFEASIBLE else "#ffffff"] * len(rows), "width": 1.5},
        },
        hoverinfo="text",
        hovertext=[_hover(row, tail_name) for row in rows],
    )


def _hover(row: Row, tail_name: str) -> str:
    head = f"<b>trial {row.trial}</b> {row.state}" + (", on the front" if row.on_front else "")
    values = f"goodput {number(row.goodput)} requests/s<br>quality {number(row.quality, 4)}"
    tail = f"{plotly_text(tail_name)} {seconds(row.tail_latency)}"
    knobs = [plotly_text(f"{name} = {knob_value(name, value)}") for name, value in row.knobs.items()]
    return "<br>".join([head, values, tail, *knobs])
