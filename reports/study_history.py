"""How the search went: the best feasible goodput so far, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from reports.style import BLUE, COLOURS, FAILED, FEASIBLE, INFEASIBLE, SYMBOLS, figure, rounded
from reports.text import number, plain, plotly_text
from tuner.results import StudyResults


@dataclass(frozen=True, slots=True)
class Row:
    """One trial. goodput: requests/s, None unless measured. best: highest feasible goodput up to this trial."""

    trial: int
    state: str
    goodput: float | None
    best: float | None
    time_scale: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Reason:
    """How often trials ended for one typed reason, and what the first of them said."""

    reason: str
    trials: tuple[int, ...]
    detail: str


def info(results: StudyResults) -> tuple[Row, ...]:
    """One row a trial, in the order of trials; the baseline counts towards the best when it is feasible."""
    rows: list[Row] = []
    best: float | None = None
    for trial in results.trials:
        goodput = None if trial.objectives is None else trial.objectives[0]
        if trial.state == FEASIBLE and goodput is not None:
            best = goodput if best is None else max(best, goodput)
        rows.append(Row(trial.number, trial.state, goodput, best, trial.time_scale, trial.reason or ""))
    return tuple(rows)


def reasons(results: StudyResults) -> tuple[Reason, ...]:
    """Typed reasons of failures and early stops, most frequent first."""
    grouped: dict[str, list[int]] = {}
    details: dict[str, str] = {}
    for trial in results.trials:
        if trial.reason is not None:
            grouped.setdefault(trial.reason, []).append(trial.number)
            details.setdefault(trial.reason, trial.detail or "")
    return tuple(
        Reason(reason, tuple(numbers), details[reason])
        for reason, numbers in sorted(grouped.items(), key=lambda item: (-len(item[1]), item[0]))
    )


def plot(rows: Sequence[Row]) -> go.Figure:
    """Trials as markers, the best feasible so far as a line; what was not measured is drawn at the bottom."""
    shown = figure(320)
    known = [row.goodput for row in rows if row.goodput is not None]
    bottom = min(known, default=0.0) - 0.08 * (max(known, default=0.0) - min(known, default=0.0))
    shown.add_scatter(
        x=[row.trial for row in rows], y=[row.best for row in rows], mode="lines", name="best feasible so far",
        line={"shape": "hv", "color": BLUE, "width": 2}, hoverinfo="skip",
    )  # fmt: skip
    for state in (INFEASIBLE, FEASIBLE, FAILED):
        here = [row for row in rows if row.state == state]
        shown.add_scatter(
            x=[row.trial for row in here],
            y=rounded(bottom if row.goodput is None else row.goodput for row in here),
            mode="markers",
            name=state,
            cliponaxis=False,
            marker={
                "symbol": SYMBOLS[state],
                "size": 10,
                "color": COLOURS[state],
                "line": {"width": 0 if state == FEASIBLE else 1.5},
            },
            hoverinfo="text",
            hovertext=[_hover(row) for row in here],
        )
    shown.update_xaxes(title_text="trial (0 = baseline)")
    shown.update_yaxes(title_text="goodput in the search (requests/s)")
    return shown


def _hover(row: Row) -> str:
    load = "" if row.time_scale is None else f" at {plain(row.time_scale)}x"
    measured = "not measured" if row.goodput is None else f"{number(row.goodput)} requests/s{load}"
    return f"trial {row.trial}, {row.state}, {measured}" + (f"<br>{plotly_text(row.reason)}" if row.reason else "")
