"""Other configurations than the recommended one: what each costs and buys against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.parts import Cell, Paragraph, Section, Table, value, word
from reports.style import RECOMMENDED
from reports.text import interval, number, plain, quality, seconds
from tuner.alternatives import WORDS, Alternative
from tuner.recommend import Recommendation
from tuner.scoring.metrics import Interval

MIB = 2**20
HEADINGS = ("alternative", "trial", "goodput (requests/s)", "load", "quality")


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration. labels: what it is the best in, "recommended" first. goodput: requests/s at time_scale times
    the recorded rate. tail_latency: seconds there. Bytes: of weights and KV pool, and of KV for one sequence of full
    length; None where the checkpoint is gone. origin: of goodput and tail. The changes are against the recommended
    one, per cent; None of itself, and where its origin is another."""

    labels: tuple[str, ...]
    trial: int
    goodput: Interval
    time_scale: float
    quality: float
    tail_latency: float
    memory_bytes: int | None
    sequence_bytes: int | None
    origin: str
    goodput_change: float | None
    tail_latency_change: float | None
    sequence_bytes_change: float | None


def info(recommendation: Recommendation) -> tuple[Row, ...]:
    """The recommended one first; no rows where nothing is recommended."""
    if not (found := recommendation.alternatives):
        return ()
    return tuple(_row(one, found[0]) for one in found)


def _row(one: Alternative, recommended: Alternative) -> Row:
    assert one.trial.objectives is not None
    tail, tail_before = one.worth.tail_latency, recommended.worth.tail_latency
    sizes = [None if each.memory is None else each.memory.sequence for each in (one, recommended)]
    itself = one is recommended
    alike = not itself and one.origin == recommended.origin
    return Row(
        labels=(*((RECOMMENDED,) if itself else ()), *one.labels),
        trial=one.trial.number,
        goodput=one.worth.goodput,
        time_scale=one.worth.time_scale,
        quality=one.trial.objectives[1],
        tail_latency=tail,
        memory_bytes=None if one.memory is None else one.memory.total,
        sequence_bytes=sizes[0],
        origin=one.origin,
        goodput_change=_change(one.worth.goodput.value, recommended.worth.goodput.value) if alike else None,
        tail_latency_change=_change(tail, tail_before) if alike else None,
        sequence_bytes_change=None if itself else _change(*sizes),
    )


def _change(new: float | None, old: float | None) -> float | None:
    return None if new is None or not old else (new / old - 1) * 100


def section(rows: Sequence[Row], tail_name: str) -> Section:
    """The rows as a table, and what the labels mean."""
    columns = (*HEADINGS, tail_name, "memory (MiB)", "KV of a sequence (MiB)", "goodput of")
    labelled = {label for row in rows for label in row.labels}
    meaning = "; ".join(f"{label}: {words}" for label, words in WORDS.items() if label in labelled)
    about = (
        f"Of the feasible trials that missed nothing when measured again. {meaning[:1].upper()}{meaning[1:]}. Changes "
        "in per cent are against the recommended one, where both figures come from the same window: another has other "
        "requests, and what the search saw once is the best of many noisy readings. "
        "tune export --trial N writes the files of one of them."
    )
    cells = tuple((RECOMMENDED if RECOMMENDED in row.labels else "", _cells(row)) for row in rows)
    return Section("alternatives", "Alternatives", (Table(columns, cells), Paragraph(about, note=True)))


def _cells(row: Row) -> tuple[Cell, ...]:
    return (
        word(", ".join(row.labels)),
        Cell(str(row.trial), row.trial, "select"),
        value(interval(row.goodput) + _signed(row.goodput_change), row.goodput.value),
        Cell(f"{plain(row.time_scale)}x", row.time_scale),
        value(quality(row.quality), row.quality),
        value(seconds(row.tail_latency) + _signed(row.tail_latency_change), row.tail_latency),
        value(_mib(row.memory_bytes), row.memory_bytes),
        value(_mib(row.sequence_bytes) + _signed(row.sequence_bytes_change), row.sequence_bytes),
        word(row.origin),
    )


def _mib(size: int | None) -> str:
    return "" if size is None else number(size / MIB)


def _signed(change: float | None) -> str:
    return "" if change is None else f" ({'+' if change > 0 else ''}{number(change, 2)} %)"
