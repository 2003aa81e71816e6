"""The section about the answers: quality by slice, the needles' grid, what speculation accepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports import quality_slices, recall_grid, speculation_domains
from reports.parts import Cell, Figure, Panels, Paragraph, Section, Table, value, verdict, word
from reports.text import NONE, decimals, percent, percent_interval


def quality(
    rows: Sequence[quality_slices.Row],
    grid: Sequence[recall_grid.Row],
    domains: Sequence[speculation_domains.Row],
) -> Section:
    """Slices with their floors, then recall by depth and length and speculation by domain where they were measured."""
    if not rows:
        return Section("quality", "Quality by slice", (Paragraph("No configuration shown here was asked the probes."),))
    figure = Figure(
        "quality", quality_slices.plot(rows),
        "Loss of quality by slice for baseline and recommended, with 95 % bounds and what is allowed; the table below "
        "holds the same values.",
        "Loss against the full-precision reference; the whisker is the one-sided 95 % bound, which must stay left of "
        "the tick.",
    )  # fmt: skip
    columns = ("slice", "configuration", "unit", "loss", "95 % bound", "allowed", "holds", "probes")
    table = Table(columns, tuple((row.role, _slice(row)) for row in rows), words=3)
    return Section("quality", "Quality by slice", (figure, table, *_needles(grid), *_domains(domains)))


def _slice(row: quality_slices.Row) -> tuple[Cell, ...]:
    losses = (value(decimals(one), one) for one in (row.loss, row.bound, row.allowed))
    unit = word(quality_slices.UNITS[row.kind])
    return (word(row.slice), word(row.role), unit, *losses, verdict(row.holds), value(str(row.probes), row.probes))


def _needles(rows: Sequence[recall_grid.Row]) -> Iterator[Panels | Paragraph]:
    if not rows:
        return
    plots = recall_grid.plot(rows)
    yield Panels(tuple(Figure(f"recall-{role}", plots[role], _grid(role, rows)) for role in plots))
    yield Paragraph(
        "Recall by where in the prompt the fact stood (0: the beginning) and how long the prompt was: right answers of "
        "the reference that are still right.",
        note=True,
    )


def _grid(role: str, rows: Sequence[recall_grid.Row]) -> str:
    here = [row for row in rows if row.role == role]
    kept, right = sum(row.kept for row in here), sum(row.right for row in here)
    where = "by depth of the fact and length of the prompt"
    return f"Heat map of the recall answers that {role} keeps, {where}: {kept} of {right} in all."


def _domains(rows: Sequence[speculation_domains.Row]) -> Iterator[Figure | Table]:
    if not rows:
        return
    trial = rows[0].trial
    yield Figure(
        "speculation", speculation_domains.plot([row for row in rows if row.trial == trial]),
        f"Accepted share of the draft's guesses by domain for trial {trial}, and from where on guessing pays; the "
        "table below holds the same values.",
        f"What trial {trial} accepts of its guesses, with 95 % intervals that take guesses as independent; right of "
        "the tick, speculation is faster than none.",
    )  # fmt: skip
    columns = ("domain", "tokens guessed a step", "acceptance", "pays from", "pays", "equal answers", "lossless")
    yield Table(columns, tuple(("", _domain(row)) for row in rows if row.trial == trial))


def _domain(row: speculation_domains.Row) -> tuple[Cell, ...]:
    accepted, least = row.acceptance, row.break_even
    return (
        word(row.slice), value(str(row.depth), row.depth),
        Cell(NONE, "") if accepted is None else Cell(percent_interval(accepted), accepted.value),
        Cell("never", "") if least is None else Cell(percent(least), least), verdict(row.pays),
        Cell(f"{row.equal}{f' and {row.tied} ties' if row.tied else ''} of {row.answers}", row.equal),
        verdict(row.lossless),
    )  # fmt: skip
