"""Where the hours of a study went: every measurement on the clock, by what it was for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import plotly.graph_objects as go

from reports.evidence import OF_TRIALS, Evidence
from reports.style import BLUE, FAILED, FEASIBLE, GREY, INFEASIBLE, PURPLE, SKY, VERMILLION, figure, rounded
from reports.text import number, plain, plotly_text
from tuner.results import StudyResults, TrialResult
from tuner.stored import StoredMeasurement

SEARCH = "search"
OTHER = "measured"
"""State of what is no trial."""
PHASES = {
    "calibration": "finding the load",
    "repeat": "finals",
    "holdout": "held-out traffic",
    "recorded_rate": "recorded rate",
    "sentinel": "watching for drift",
    "ablation": "changes taken back",
    "scenario": "other circumstances",
}
"""What purposes are called."""
STATES = {FEASIBLE: BLUE, INFEASIBLE: GREY, FAILED: VERMILLION, "doubtful": PURPLE, OTHER: SKY}


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement, or a trial that ended without one. start, end: seconds since the first of them began.

    phase: "search" for baseline and trials, else the purpose. trial: whose configuration; None before there was one.
    state: what the replay found of the trial, "measured" for what is no trial. reconfigure, replay, quality: seconds.
    """

    start: float
    end: float
    phase: str
    trial: int | None
    window: str
    time_scale: float | None
    state: str
    reason: str
    reconfigure: float
    replay: float
    quality: float


def info(results: StudyResults, evidence: Evidence) -> tuple[Row, ...]:
    """Rows by start."""
    trials = {trial.number: trial for trial in results.trials}
    measured = {one.trial for one in evidence.measured if one.measurement.purpose in OF_TRIALS}
    rows = [_row(one, trials) for one in evidence.measured]
    for failure in evidence.failures:
        if failure.trial not in measured:
            end = _seconds(failure.created)
            start = end - sum(failure.seconds.values())
            rows.append(Row(start, end, SEARCH, failure.trial, "tune", None, FAILED, failure.reason, end - start, 0, 0))
    first = min((row.start for row in rows), default=0.0)
    return tuple(sorted((_since(row, first) for row in rows), key=lambda row: row.start))


def _row(stored: StoredMeasurement, trials: Mapping[int, TrialResult]) -> Row:
    one, end = stored.measurement, _seconds(stored.created)
    searched = one.purpose in OF_TRIALS
    trial = trials.get(stored.trial or 0) if searched else None
    state = OTHER if trial is None else _state(trial, one.time_scale)
    parts = tuple(one.seconds.get(name, 0.0) for name in ("reconfigure", "replay", "quality"))
    phase = SEARCH if searched else one.purpose
    start = end - sum(one.seconds.values())
    return Row(start, end, phase, stored.trial, one.window, one.time_scale, state, one.stopped or "", *parts)


def _state(trial: TrialResult, time_scale: float) -> str:
    """What a trial's replay at this load found: a trial climbs while it holds."""
    if trial.state != FEASIBLE or trial.time_scale is None:
        return trial.state
    return INFEASIBLE if time_scale > trial.time_scale else FEASIBLE


def _seconds(created: str) -> float:
    return datetime.fromisoformat(created).timestamp()


def _since(row: Row, first: float) -> Row:
    rest = (row.phase, row.trial, row.window, row.time_scale, row.state, row.reason)
    return Row(row.start - first, row.end - first, *rest, row.reconfigure, row.replay, row.quality)


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of one phase: total, and how much of that by part; the rest is starting and waiting."""

    phase: str
    measurements: int
    total: float
    reconfigure: float
    replay: float
    quality: float


def spent(rows: Sequence[Row]) -> tuple[Spent, ...]:
    """Phases in the order in which they began."""
    return tuple(_spent(phase, rows) for phase in dict.fromkeys(row.phase for row in rows))


def _spent(phase: str, rows: Sequence[Row]) -> Spent:
    here = [row for row in rows if row.phase == phase]
    return Spent(
        phase,
        len(here),
        sum(row.end - row.start for row in here),
        sum(row.reconfigure for row in here),
        sum(row.replay for row in here),
        sum(row.quality for row in here),
    )


def phase_name(phase: str) -> str:
    """A phase in words."""
    return PHASES.get(phase, phase)


def plot(rows: Sequence[Row]) -> go.Figure:
    """A bar for each measurement, one line a phase, minutes along."""
    phases = list(dict.fromkeys(row.phase for row in rows))
    shown = figure(120 + 34 * len(phases), barmode="overlay", bargap=0.25)
    for state, colour in STATES.items():
        here = [row for row in rows if row.state == state]
        if not here:
            continue
        shown.add_bar(
            orientation="h", name=state, base=rounded(row.start / 60 for row in here),
            x=rounded((row.end - row.start) / 60 for row in here), y=[phase_name(row.phase) for row in here],
            marker={"color": colour, "line": {"width": 0}, "pattern": {"shape": "x" if state == FAILED else ""}},
            hoverinfo="text", textposition="none", hovertext=["<br>".join(_hover(row)) for row in here],
        )  # fmt: skip
    shown.update_xaxes(title_text="minutes", rangemode="tozero")
    order = [phase_name(phase) for phase in phases]
    shown.update_yaxes(type="category", autorange="reversed", categoryorder="array", categoryarray=order)
    return shown


def _hover(row: Row) -> Iterator[str]:
    scale = "" if row.time_scale is None else f" at {plain(row.time_scale)}x"
    yield f"{'baseline' if row.trial is None else f'trial {row.trial}'}{scale}, {number(row.end - row.start)} s"
    if row.reason:
        yield plotly_text(row.reason)
