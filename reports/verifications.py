"""What `tune verify` found: the recommendation measured again beside the baseline, after the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reports.evidence import Evidence
from reports.parts import Cell, Paragraph, Section, Table, value, verdict, word
from reports.text import MINUS, NONE, number, percent, plain
from tuner.results import StudyResults
from tuner.scoring.metrics import Interval
from tuner.verification import Verification, verification

NEW_TRAFFIC = "new"


@dataclass(frozen=True, slots=True)
class Row:
    """One `tune verify`. verified: UTC, ISO 8601. traffic: the window of the study's trace, or the file.

    goodput, baseline: requests/s, means of the rounds; None where nothing was measured. difference: requests/s, paired
    by request. attainment: by class. missed: constraints. failure: how its engine failed, else "".
    """

    verified: str
    trial: int
    traffic: str
    time_scale: float
    rounds: int
    holds: bool
    comparison: str
    goodput: float | None
    baseline: float | None
    difference: Interval | None
    attainment: Mapping[str, float]
    missed: tuple[str, ...]
    failure: str
    doubts: tuple[str, ...]


def info(results: StudyResults, evidence: Evidence) -> tuple[Row, ...]:
    """Rows in the order of verifying, scored by the SLOs and floors of `results`."""
    kept = {stored.id: stored for stored in evidence.verified}
    found = []
    for about in evidence.verifications:
        measured = [(kept[key].trial or 0, kept[key].measurement) for key in about.measurements]
        reference = evidence.references.get(about.reference_key, ())
        found.append(_row(verification(about, measured, reference, results.spec)))
    return tuple(found)


def _row(found: Verification) -> Row:
    about, new, old = found.about, found.recommended, found.baseline
    return Row(
        verified=about.created,
        trial=about.trial,
        traffic=about.window if about.window != NEW_TRAFFIC else Path(about.trace).name,
        time_scale=about.time_scale,
        rounds=0 if new is None else len(new.goodput),
        holds=found.holds,
        comparison=found.comparison or "",
        goodput=None if new is None else new.mean_goodput,
        baseline=None if old is None else old.mean_goodput,
        difference=found.difference,
        attainment={} if new is None else new.attainment,
        missed=tuple(sorted(found.missed)),
        failure=about.failure or "",
        doubts=tuple(doubt.name for doubt in found.doubts),
    )


def moment(row: Row) -> str:
    """When it was verified, to the minute."""
    return row.verified[:16].replace("T", " ") + " UTC"


def section(rows: Sequence[Row], recommended: int | None) -> Section:
    """What was found, the last first."""
    columns = ("verified", "traffic", "trial", "load", "holds", "goodput (requests/s)", "baseline (requests/s)",
               "difference (requests/s)", "good, by class", "missed or failed", "doubts")  # fmt: skip
    cells = tuple(("recommended" if row.trial == recommended else "", _cells(row)) for row in reversed(rows))
    about = (
        "tune verify measured the configuration and the baseline by turns, under the same requests. Difference: paired "
        "by request, with its 95 % interval. It holds when every SLO and floor is met and the baseline is not shown to "
        "serve more."
    )
    return Section("verified", "Verified since", (Table(columns, cells, words=2), Paragraph(about, note=True)))


def _cells(row: Row) -> tuple[Cell, ...]:
    shares = ", ".join(f"{name} {percent(share)}" for name, share in row.attainment.items())
    return (
        Cell(moment(row), row.verified), word(row.traffic, "text"), Cell(str(row.trial), row.trial),
        Cell(f"{plain(row.time_scale)}x", row.time_scale), verdict(row.holds),
        value(number(row.goodput), row.goodput), value(number(row.baseline), row.baseline),
        value(_difference(row.difference), None if row.difference is None else row.difference.value),
        word(shares or NONE, "text"), word(row.failure or ", ".join(row.missed), "text"),
        word(", ".join(row.doubts), "text"),
    )  # fmt: skip


def _difference(one: Interval | None) -> str:
    return NONE if one is None else f"{_signed(one.value)} [{_signed(one.low)}, {_signed(one.high)}]"


def _signed(value: float) -> str:
    told = number(value)
    return told if told.startswith(MINUS) or value == 0 else f"+{told}"
