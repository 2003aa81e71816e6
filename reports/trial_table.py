"""Every trial, sortable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.parts import Cell, Table, value, word
from reports.scenarios import left
from reports.style import BASELINE, RECOMMENDED
from reports.text import NONE, knob_value, number, percent, plain, quality, seconds
from tuner.results import StudyResults, TrialResult
from tuner.scoring.metrics import Interval
from tuner.worth import claim


@dataclass(frozen=True, slots=True)
class Row:
    """One trial, as the search saw it. goodput: requests/s. quality: 1 = reference; None where the probes were not
    asked. tail_latency: s. time_scale: of the load that the figures are of; missed_scale: the lowest above it that was
    missed. tightest: the constraint with the least slack; slack: by how much it holds, negative where missed.

    claimed_goodput: requests/s at claimed_time_scale, None where nothing is claimed (worth.claim). spent: seconds.
    """

    trial: int
    role: str
    state: str
    on_front: bool
    goodput: Interval | None
    quality: float | None
    tail_latency: float | None
    time_scale: float | None
    missed_scale: float | None
    claimed_goodput: Interval | None
    claimed_time_scale: float | None
    claimed_on: str
    tightest: str
    slack: float | None
    knobs: Mapping[str, Any]
    reason: str
    detail: str
    spent: float | None


def info(results: StudyResults, recommended: int | None) -> tuple[Row, ...]:
    """One row a trial, in the order of trials."""
    return tuple(_row(trial, results, recommended) for trial in results.trials)


def _row(trial: TrialResult, results: StudyResults, recommended: int | None) -> Row:
    role = BASELINE if trial is results.baseline else ""
    found = claim(results, trial.number)
    worst = max(trial.constraints.items(), key=lambda item: item[1], default=None)
    return Row(
        trial=trial.number,
        role=RECOMMENDED if trial.number == recommended else role,
        state=trial.state,
        on_front=trial.on_front,
        goodput=None if trial.traffic is None else trial.traffic.goodput,
        quality=None if trial.quality is None else trial.quality.value,
        tail_latency=None if trial.objectives is None else trial.objectives[2],
        time_scale=trial.time_scale,
        missed_scale=trial.missed_scale,
        claimed_goodput=None if found is None else found.goodput,
        claimed_time_scale=None if found is None else found.time_scale,
        claimed_on="" if found is None else found.purpose,
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
    head = ("trial", "state", "claimed (requests/s)", "in the search (requests/s)", "load", "tail latency", "quality",
            "tightest constraint")  # fmt: skip
    cells = [(row.role, (*_measured(row), *(_knob(row, name) for name in knobs), *_ending(row))) for row in rows]
    return Table((*head, *knobs, "reason", "time"), tuple(cells), words=2)


def _measured(row: Row) -> tuple[Cell, ...]:
    goodput = None if row.goodput is None else row.goodput.value
    return (
        Cell(f"{row.trial} {row.role}".strip(), row.trial, "select"),
        word(row.state + (", on the front" if row.on_front else "")),
        _claimed(row),
        value(number(goodput), goodput),
        Cell(NONE, "") if row.time_scale is None else Cell(f"{plain(row.time_scale)}x", row.time_scale),
        value(seconds(row.tail_latency), row.tail_latency),
        value("" if row.quality is None else quality(row.quality), row.quality),
        value(_left(row), row.slack),
    )


def _left(row: Row) -> str:
    if row.slack is None:
        return ""
    return f"{row.tightest} {percent(left(-row.slack)) if row.tightest.startswith('slo:') else number(row.slack)}"


def _claimed(row: Row) -> Cell:
    if row.claimed_goodput is None or row.claimed_time_scale is None:
        return Cell(NONE, "")
    return Cell(f"{number(row.claimed_goodput.value)} at {plain(row.claimed_time_scale)}x", row.claimed_goodput.value)


def _knob(row: Row, name: str) -> Cell:
    if name not in row.knobs:
        return Cell(NONE, "")
    set_to = row.knobs[name]
    shown = knob_value(name, set_to)
    return Cell(shown, float(set_to) if isinstance(set_to, (int, float)) else shown)


def _ending(row: Row) -> tuple[Cell, Cell]:
    reason = ": ".join(part for part in (row.reason, row.detail) if part)
    return word(reason, "text"), value(f"{number(row.spent)} s", row.spent)
