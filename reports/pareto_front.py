"""Goodput against quality and against the tail, every measured trial, with baseline and recommended marked.

A trial that was measured again stands at what is claimed of it, joined to what the search saw: the best of many noisy
readings is too good.
"""

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
from tuner.results import OBJECTIVES, StudyResults
from tuner.scoring.metrics import Interval
from tuner.worth import claim

GOODPUT, QUALITY, TAIL = OBJECTIVES
SEARCHED = "in the search"
FRONT = "on the front"
LOOKS = {**SYMBOLS, FRONT: "circle", FEASIBLE: "circle-open"}


@dataclass(frozen=True, slots=True)
class Row:
    """One trial, measured in full. role: "baseline", "recommended" or "". state, on_front: in the search.

    goodput (requests/s) and tail_latency (s): in the search, at time_scale times the recorded rate. claimed_goodput:
    requests/s at claimed_time_scale, with claimed_tail_latency; None where nothing is claimed (tuner.worth.claim).
    """

    trial: int
    state: str
    role: str
    goodput: float
    quality: float
    tail_latency: float
    time_scale: float | None
    claimed_goodput: Interval | None
    claimed_time_scale: float | None
    claimed_on: str
    claimed_tail_latency: float | None
    on_front: bool
    knobs: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """What it is drawn as."""
        return self.role or (FRONT if self.on_front else self.state)

    @property
    def at(self) -> dict[str, float]:
        """Where it is drawn: at what is claimed, or else as the search saw it."""
        since = (
            {}
            if self.claimed_goodput is None
            else {GOODPUT: self.claimed_goodput.value, TAIL: self.claimed_tail_latency}
        )
        return {**self.searched_at, **{name: value for name, value in since.items() if value is not None}}

    @property
    def searched_at(self) -> dict[str, float]:
        """Where the search saw it."""
        return {GOODPUT: self.goodput, QUALITY: self.quality, TAIL: self.tail_latency}


def info(results: StudyResults, recommended: int | None) -> tuple[Row, ...]:
    """One row for each trial whose goodput and quality were measured, in the order of trials."""
    rows = []
    for trial in results.trials:
        if trial.objectives is not None and trial.quality is not None:
            role = BASELINE if trial is results.baseline else ""
            role = RECOMMENDED if trial.number == recommended else role
            found = claim(results, trial.number)
            goodput, quality, tail = trial.objectives
            rows.append(
                Row(
                    trial=trial.number,
                    state=trial.state,
                    role=role,
                    goodput=goodput,
                    quality=quality,
                    tail_latency=tail,
                    time_scale=trial.time_scale,
                    claimed_goodput=None if found is None else found.goodput,
                    claimed_time_scale=None if found is None else found.time_scale,
                    claimed_on="" if found is None else found.purpose,
                    claimed_tail_latency=None if found is None else found.tail_latency,
                    on_front=trial.on_front,
                    knobs=trial.knobs,
                )
            )
    return tuple(rows)


def staircase(rows: Sequence[Row], against: str = QUALITY) -> tuple[tuple[float, float], ...]:
    """(goodput, value) in the search of the feasible trials that no feasible trial beats in both, from low goodput to
    high: what was measured again stands lower, and would lose to what was not.

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
        x=[x for x, _ in steps], y=[y for _, y in steps], mode="lines", name="best in the search",
        line={"shape": "vh" if against == QUALITY else "hv", "color": GREY, "width": 1, "dash": "dot"},
        hoverinfo="skip",
    )  # fmt: skip
    for kind in (INFEASIBLE, FEASIBLE, FRONT, BASELINE, RECOMMENDED):
        here = [row for row in rows if row.kind == kind]
        if here:
            shown.add_trace(_markers(here, kind, against))
    if again := [row for row in rows if row.claimed_goodput is not None]:
        shown.add_traces(_searched(again, against))
    # The page's script puts what is selected here.
    shown.add_scatter(
        x=[], y=[], mode="markers", name="selected", showlegend=False, hoverinfo="skip", meta={"selected": against},
        marker={"symbol": "circle-open", "size": 26, "color": PURPLE, "line": {"width": 3}},
    )  # fmt: skip
    shown.update_xaxes(
        title_text=f"goodput (requests/s),<br>claimed or else {SEARCHED}" if again else "goodput (requests/s)"
    )
    shown.update_yaxes(title_text=title)
    if against == TAIL:
        shown.update_yaxes(seconds_axis([at[TAIL] for row in rows for at in (row.at, row.searched_at)]))
    return shown


def _searched(rows: Sequence[Row], against: str) -> tuple[go.Scatter, go.Scatter]:
    """What the search saw of trials that were measured again, and lines from there to what is claimed."""
    places = [(row.searched_at, row.at) for row in rows]
    small = {"symbol": "circle-open", "size": 7, "color": GREY}
    xs, ys = (
        [one for before, after in places for one in (before[name], after[name], None)] for name in (GOODPUT, against)
    )
    line = {"color": GREY, "width": 0.75}
    return (
        go.Scatter(x=xs, y=ys, mode="lines", showlegend=False, hoverinfo="skip", line=line),
        go.Scatter(
            x=rounded(before[GOODPUT] for before, _ in places), y=rounded(before[against] for before, _ in places),
            customdata=[row.trial for row in rows], mode="markers", name=SEARCHED, marker=small, hoverinfo="text",
        ),
    )  # fmt: skip


def _markers(rows: Sequence[Row], kind: str, against: str) -> go.Scatter:
    """customdata: the trials' numbers; from them the page's script tells the whole configuration, and selects."""
    labelled = kind in (BASELINE, RECOMMENDED)
    missed = labelled and any(row.state == INFEASIBLE and row.claimed_goodput is None for row in rows)
    colour = COLOURS.get(kind, COLOURS[FEASIBLE])
    return go.Scatter(
        x=rounded(row.at[GOODPUT] for row in rows),
        y=rounded(row.at[against] for row in rows),
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
