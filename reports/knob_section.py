"""The section about the knobs: what each does, alone and with another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from reports import knob_effects, knob_importances, single_changes
from reports.parts import Cell, Figure, Panels, Paragraph, Section, Table, verdict, word
from reports.text import NONE, interval, knob_value, percent, plain, whole_percent
from tuner.anova import Anova
from tuner.scoring.metrics import Interval

MOST_PAIRS = 6
"""Interactions listed; the CSV table has all."""
WORTH_A_PICTURE = 0.02
"""Share from which on an interaction is listed, and the strongest drawn."""


def changes(rows: Sequence[single_changes.Row]) -> Section:
    """The recommendation with one change taken back at a time."""
    figure = Figure(
        "changes", single_changes.plot(rows),
        "Goodput of baseline and recommended, and of the recommended configuration without each of its changes; the "
        "table below holds the same values.",
        "Goodput with 95 % intervals at the highest load held (hollow: none was; the lowest that was tried). What "
        "stands near the recommended one is not needed there.",
    )  # fmt: skip
    columns = ("configuration", "baseline has", "recommended has", "load", "holds", "goodput (requests/s)")
    table = Table(columns, tuple((row.configuration, _change(row)) for row in rows))
    return Section("changes", "What each change buys", (figure, table))


def _change(row: single_changes.Row) -> tuple[Cell, ...]:
    values = (word(knob_value(row.knob, one) if row.knob else NONE) for one in (row.before, row.after))
    load = Cell(f"{plain(row.time_scale)}x", row.time_scale)
    return word(row.configuration), *values, load, verdict(row.holds), Cell(interval(row.goodput), row.goodput.value)


def knobs(rows: Sequence[knob_effects.Row], found: Mapping[str, Anova]) -> Section:
    """Effects on goodput, then importances and interactions."""
    goodput = found.get(knob_importances.GOODPUT)
    panels = tuple(
        Figure(f"knob-{place}", figure, f"Goodput of the trials by the value of {knob}, and its effect by itself")
        for place, (knob, figure) in enumerate(knob_effects.plot(rows, knob_effects.effects(goodput)).items())
    )
    about = Paragraph(
        "Markers: trials as the search saw them; a circle is feasible, a cross infeasible, a triangle failed (drawn at "
        "the bottom). The other knobs vary among them. Green bars: goodput by the value of this knob alone, the others "
        "averaged, with 95 % intervals, of a Gaussian-process analysis of variance in which the load is one more knob.",
        note=True,
    )
    return Section("knobs", "What each knob does", (Panels(panels), about, *_importances(found)))


def _importances(found: Mapping[str, Anova]) -> Iterator[Figure | Paragraph | Table]:
    rows = knob_importances.info(found)
    if not rows:
        yield Paragraph("Too few trials, or too little difference between them, for an analysis of variance.")
        return
    yield Figure(
        "importance", knob_importances.plot(rows),
        "Importance of each knob for goodput, quality and tail latency with 95 % intervals; the table below holds the "
        "same values.",
        f"Share of the explained variance that each knob has alone. {_trust(found)}",
    )  # fmt: skip
    shares = {(row.objective, row.knob, row.second): row.share for row in rows}
    objectives = tuple(found)
    alone = dict.fromkeys((row.knob, "") for row in rows if not row.second)
    yield Table(("knob", *objectives), tuple(("", _shares(pair, objectives, shares)) for pair in alone))
    told = [name for name, one in found.items() if one.predicted >= knob_importances.TOLD]
    worthy = [row for row in rows if row.second and row.objective in told and row.share.value >= WORTH_A_PICTURE]
    together = sorted(worthy, key=lambda row: -row.share.value)
    pairs = list(dict.fromkeys((row.knob, row.second) for row in together))[:MOST_PAIRS]
    if pairs:
        yield Table(("knobs together", *objectives), tuple(("", _shares(pair, objectives, shares)) for pair in pairs))
    yield from _strongest(found.get(knob_importances.GOODPUT))


def _trust(found: Mapping[str, Anova]) -> str:
    told = ", ".join(f"{name} {percent(max(one.predicted, 0.0))}" for name, one in found.items())
    weak = " and ".join(name for name, one in found.items() if one.predicted < knob_importances.TOLD)
    sentence = f"Of the variance of trials that it has not seen, the analysis predicts: {told}."
    return f"{sentence} That is too little to trust it on {weak}." if weak else sentence


def _shares(
    knobs: tuple[str, str], objectives: Sequence[str], shares: Mapping[tuple[str, str, str], Interval]
) -> tuple[Cell, ...]:
    found = [shares.get((objective, *knobs)) for objective in objectives]
    cells = (Cell(NONE, "") if share is None else Cell(whole_percent(share), share.value) for share in found)
    return word(" and ".join(filter(None, knobs))), *cells


def _strongest(goodput: Anova | None) -> Iterator[Figure]:
    """Of two knobs; what the load does to a knob is no choice."""
    pairs = goodput.interactions if goodput is not None else ()
    pair = next((one for one in pairs if knob_importances.LOAD not in one.knobs), None)
    if goodput is None or pair is None or pair.share < WORTH_A_PICTURE:
        return
    first, second = pair.knobs
    yield Figure(
        "pair", knob_importances.plot_pair(goodput, pair), f"Heat map of goodput by {first} and {second}",
        f"The strongest interaction: goodput (requests/s) by {first} and {second}, the others averaged.",
    )  # fmt: skip
