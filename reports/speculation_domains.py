"""How much of what the draft guesses is accepted, domain by domain, and from where on guessing pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from reports.evidence import Evidence
from reports.style import GREEN, GREY, figure
from reports.text import number, percent, percent_interval, plotly_text
from tuner.results import StudyResults
from tuner.scoring.intervals import proportion_interval
from tuner.scoring.metrics import Interval
from tuner.scoring.speculation import DomainSpeculation


@dataclass(frozen=True, slots=True)
class Row:
    """One domain (slice of the probes) under one trial's configuration; depth: tokens guessed a step.

    acceptance: accepted share of the guesses, None where nothing was guessed. break_even: acceptance from which on
    guessing is faster; None: at none. lossless: no answer differs for another reason than a tie.
    """

    trial: int
    slice: str
    depth: int
    drafted: int
    accepted: int
    acceptance: Interval | None
    break_even: float | None
    answers: int
    equal: int
    tied: int
    lossless: bool

    @property
    def pays(self) -> bool:
        """Whether the acceptance is beyond the break-even."""
        if self.acceptance is None or self.break_even is None:
            return False
        return self.acceptance.value >= self.break_even


def info(results: StudyResults, recommended: int | None, evidence: Evidence) -> tuple[Row, ...]:
    """Rows by trial, the recommended first, then slice; the latest measurement of each trial. Only finalists that
    speculate are asked."""
    latest = {one.trial: one.measurement.speculation for one in evidence.measured if one.measurement.speculation}
    rows = [_row(trial, domain) for trial, found in latest.items() if trial is not None for domain in found]
    return tuple(sorted(rows, key=lambda row: (row.trial != recommended, row.trial, row.slice)))


def _row(trial: int, domain: DomainSpeculation) -> Row:
    share = domain.acceptance
    bounds = None if share is None else Interval(share, *proportion_interval(domain.accepted, domain.drafted))
    return Row(
        trial=trial,
        slice=domain.slice,
        depth=domain.depth,
        drafted=domain.drafted,
        accepted=domain.accepted,
        acceptance=bounds,
        break_even=domain.break_even,
        answers=domain.answers,
        equal=domain.equal,
        tied=domain.tied,
        lossless=domain.lossless,
    )


def plot(rows: Sequence[Row]) -> go.Figure:
    """Acceptance with its interval, and the break-even as a tick; rows of one trial."""
    names = [plotly_text(row.slice) for row in rows]
    shown = figure(110 + 34 * len(rows))
    known = [(name, row.acceptance, row) for name, row in zip(names, rows, strict=True) if row.acceptance is not None]
    shown.add_scatter(
        x=[one.value * 100 for _, one, _ in known], y=[name for name, _, _ in known], mode="markers", name="acceptance",
        error_x={"type": "data", "array": [(one.high - one.value) * 100 for _, one, _ in known],
                 "arrayminus": [(one.value - one.low) * 100 for _, one, _ in known], "color": GREEN},
        marker={"symbol": "circle", "size": 11, "color": GREEN}, hoverinfo="text",
        hovertext=[f"{name}: {percent_interval(one)} of {number(row.drafted)} guesses" for name, one, row in known],
    )  # fmt: skip
    paying = [(name, row.break_even) for name, row in zip(names, rows, strict=True) if row.break_even is not None]
    shown.add_scatter(
        x=[share * 100 for _, share in paying], y=[name for name, _ in paying], mode="markers", name="break-even",
        marker={"symbol": "line-ns-open", "size": 20, "color": GREY, "line": {"width": 3}}, hoverinfo="text",
        hovertext=[f"{name}: pays from {percent(share)} on" for name, share in paying],
    )  # fmt: skip
    shown.update_xaxes(title_text="accepted guesses (%)", range=[0, 102])
    shown.update_yaxes(autorange="reversed", type="category")
    return shown
