"""Which needles are still found: right answers by where in the prompt the fact stood and how long the prompt was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from reports.evidence import Evidence
from reports.style import BLUE, VERMILLION, YELLOW, compared, figure
from reports.text import plotly_text
from tuner.results import StudyResults

DEPTHS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Edges of the bins of depth; 0 is the beginning of the prompt."""
LOST_TO_KEPT = ((0.0, VERMILLION), (0.5, YELLOW), (1.0, BLUE))


@dataclass(frozen=True, slots=True)
class Row:
    """One bin under one configuration. length_low, length_high: tokens of the prompt, a power of two to the next.
    right: the reference's right answers there; kept: those of them that are still right."""

    role: str
    length_low: int
    length_high: int
    depth_low: float
    depth_high: float
    probes: int
    right: int
    kept: int


def info(results: StudyResults, recommended: int | None, evidence: Evidence) -> tuple[Row, ...]:
    """Rows by role, length and depth of the bins that hold probes; those of unknown depth or length are left out."""
    right = {record.probe_id for record in evidence.reference if record.correct}
    rows = []
    for role, trial in compared(results, recommended):
        stored = evidence.of_trial(trial)
        bins: dict[tuple[int, int], list[tuple[bool, bool]]] = {}
        for probe in stored.measurement.probes if stored is not None else ():
            if probe.kind == "recall" and probe.depth is not None and probe.length:
                place = (probe.length.bit_length() - 1, _bin(probe.depth))
                bins.setdefault(place, []).append((probe.probe_id in right, bool(probe.correct)))
        rows += [_row(role, *place, answers) for place, answers in sorted(bins.items())]
    return tuple(rows)


def _bin(depth: float) -> int:
    return next(place for place, high in enumerate(DEPTHS[1:]) if depth <= high)


def _row(role: str, power: int, place: int, answers: Sequence[tuple[bool, bool]]) -> Row:
    kept = sum(before and after for before, after in answers)
    right = sum(before for before, _ in answers)
    where = (2**power, 2 ** (power + 1) - 1, DEPTHS[place], DEPTHS[place + 1])
    return Row(role, *where, len(answers), right, kept)


def plot(rows: Sequence[Row]) -> dict[str, go.Figure]:
    """One heat map a configuration, on the same axes: the kept share, and in words how many of how many."""
    lengths = sorted({(row.length_low, row.length_high) for row in rows})
    depths = sorted({(row.depth_low, row.depth_high) for row in rows})
    return {
        role: _panel(role, {_place(row): row for row in rows if row.role == role}, lengths, depths)
        for role in dict.fromkeys(row.role for row in rows)
    }


def _place(row: Row) -> tuple[tuple[float, float], tuple[int, int]]:
    return (row.depth_low, row.depth_high), (row.length_low, row.length_high)


def _panel(
    role: str,
    found: dict[tuple[tuple[float, float], tuple[int, int]], Row],
    lengths: Sequence[tuple[int, int]],
    depths: Sequence[tuple[float, float]],
) -> go.Figure:
    cells = [[found.get((depth, length)) for length in lengths] for depth in depths]
    shown = figure(110 + 44 * len(depths), margin={"l": 84, "r": 12, "t": 40, "b": 56})
    shown.update_layout(title={"text": plotly_text(role), "font": {"size": 14}, "x": 0.02, "y": 0.97})
    shown.add_heatmap(
        z=[[one.kept / one.right if one is not None and one.right else None for one in row] for row in cells],
        x=[f"{low:,}–{high:,}" for low, high in lengths],
        y=[f"{low:g}–{high:g}" for low, high in depths],
        text=[["" if one is None else f"{one.kept}/{one.right}" for one in row] for row in cells],
        texttemplate="%{text}", colorscale=LOST_TO_KEPT, zmin=0, zmax=1, showscale=False, xgap=2, ygap=2,
        hovertemplate="prompt of %{x} tokens, fact at %{y} of it<br>%{text} right answers kept<extra></extra>",
    )  # fmt: skip
    shown.update_xaxes(title_text="tokens of the prompt", type="category")
    shown.update_yaxes(title_text="depth", type="category", autorange="reversed")
    return shown
