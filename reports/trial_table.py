"""Every trial, sortable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.style import BASELINE, RECOMMENDED
from reports.text import NONE, knob_value, number, seconds
from tuner.results import StudyResults, TrialResult
from tuner.scoring.metrics import Interval


@dataclass(frozen=True, slots=True)
class Row:
    """One trial. goodput: requests/s. quality: 1 = reference; None where the probes were not asked. tail_latency: s.

    tightest: the constraint with the least slack; slack: by how much it holds, negative where missed. spent: seconds.
    """

    trial: int
    role: str
    state: str
    on_front: bool
    goodput: Interval | None
    quality: float | None
    tail_latency: float | None
    tightest: str
    slack: float | None
    knobs: Mapping[str, Any]
    reason: str
    detail: str
    spent: float | None


@dataclass(frozen=True, slots=True)
class Cell:
    """What is shown, and what the column is sorted by: a number, or the text where there is none."""

    text: str
    key: float | str


@dataclass(frozen=True, slots=True)
class Table:
    """columns: headings with units. rows: as many cells as columns; role marks baseline and recommended."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def info(results: StudyResults, recommended: int | None) -> tuple[Row, ...]:
    """One row a trial, in the order of trials."""
    return tuple(_row(trial, results, recommended) for trial in results.trials)


def _row(trial: TrialResult, results: StudyResults, recommended: int | None) -> Row:
    role = BASELINE if trial is results.baseline else ""
    worst = max(trial.constraints.items(), key=lambda item: item[1], default=None)
    return Row(
        trial=trial.number,
        role=RECOMMENDED if trial.number == recommended else role,
        state=trial.state,
        on_front=trial.on_front,
        goodput=None if trial.traffic is None else trial.traffic.goodput,
        quality=None if trial.quality is None else trial.quality.value,
        tail_latency=None if trial.objectives is None else trial.objectives[2],
        tightest="" if worst is None else worst[0],
        slack=None if worst is None else -worst[1],
        knobs=trial.knobs,
        reason=trial.reason or "",
        detail=trial.detail or "",
        spent=sum(trial.seconds.values()) if trial.seconds else None,
    )


def table(rows: Sequence[Row]) -> Table:
    """The rows as a reader sees them: a column a knob between the figures and the reason."""
    knobs = tuple(dict.fromkeys(name for row in rows for name in row.knobs))
    head = ("trial", "state", "goodput (requests/s)", "quality", "tail latency", "tightest constraint")
    cells = [(row.role, (*_measured(row), *(_knob(row, name) for name in knobs), *_ending(row))) for row in rows]
    return Table((*head, *knobs, "reason", "time"), tuple(cells))


def _measured(row: Row) -> tuple[Cell, ...]:
    state = row.state + (", on the front" if row.on_front else "")
    goodput = None if row.goodput is None else row.goodput.value
    return (
        Cell(f"{row.trial} {row.role}".strip(), row.trial),
        Cell(state, state),
        _number(number(goodput), goodput),
        _number(number(row.quality, 4), row.quality),
        _number(seconds(row.tail_latency), row.tail_latency),
        Cell(NONE, "") if row.slack is None else Cell(f"{row.tightest} {number(row.slack)}", row.slack),
    )


def _number(text: str, value: float | None) -> Cell:
    return Cell(text, "" if value is None else value)


def _knob(row: Row, name: str) -> Cell:
    if name not in row.knobs:
        return Cell(NONE, "")
    value = row.knobs[name]
    text = knob_value(name, value)
    return Cell(text, float(value) if isinstance(value, (int, float)) else text)


def _ending(row: Row) -> tuple[Cell, Cell]:
    reason = ": ".join(part for part in (row.reason, row.detail) if part)
    return Cell(reason, reason), _number(NONE if row.spent is None else f"{number(row.spent)} s", row.spent)
