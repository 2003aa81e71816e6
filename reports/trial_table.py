"""Every trial, sortable."""

from __future__ import annotations

from dataclasses import dataclass

from reports.text import NONE, knob_value, number, seconds
from tuner.results import StudyResults, TrialResult


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


def info(results: StudyResults, recommended: int | None) -> Table:
    """One row a trial: number, state, objectives, the constraint with the least slack, knobs, reason, time spent."""
    knobs = tuple(dict.fromkeys(name for trial in results.trials for name in trial.knobs))
    head = ("trial", "state", "goodput (requests/s)", "quality", "tail latency", "tightest constraint")
    rows = []
    for trial in results.trials:
        role = "baseline" if trial is results.baseline else ""
        role = "recommended" if trial.number == recommended else role
        cells = (*_measured(trial, role), *(_knob(trial, name) for name in knobs), *_ending(trial))
        rows.append((role, cells))
    return Table((*head, *knobs, "reason", "time"), tuple(rows))


def _measured(trial: TrialResult, role: str) -> tuple[Cell, ...]:
    goodput, quality, tail = trial.objectives or (None, None, None)
    if trial.quality is None:
        quality = None  # the objective of a trial that was not asked the probes is 0: unknown, not bad
    worst = max(trial.constraints.items(), key=lambda item: item[1], default=None)
    state = trial.state + (", on the front" if trial.on_front else "")
    return (
        Cell(f"{trial.number} {role}".strip(), trial.number),
        Cell(state, state),
        _number(number(goodput), goodput),
        _number(number(quality, 4), quality),
        _number(seconds(tail), tail),
        Cell(NONE, "") if worst is None else Cell(f"{worst[0]} {number(worst[1])}", worst[1]),
    )


def _number(text: str, value: float | None) -> Cell:
    return Cell(text, "" if value is None else value)


def _knob(trial: TrialResult, name: str) -> Cell:
    if name not in trial.knobs:
        return Cell(NONE, "")
    value = trial.knobs[name]
    text = knob_value(name, value)
    return Cell(text, float(value) if isinstance(value, (int, float)) else text)


def _ending(trial: TrialResult) -> tuple[Cell, Cell]:
    reason = ": ".join(part for part in (trial.reason, trial.detail) if part)
    spent = sum(trial.seconds.values())
    return Cell(reason, reason), Cell(f"{number(spent)} s" if trial.seconds else NONE, spent)
