"""Does each SLO class get what it was promised, under the tuned load, on held-out traffic and at the recorded rate?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from reports.style import BASELINE, COLOURS, GREY, RECOMMENDED, axes, compared, figure
from reports.text import percent, percent_interval, plain, plotly_text
from tuner.results import StudyResults, ValidationResult
from tuner.scoring.metrics import Interval, TrafficMetrics

TUNED = "tuned load"
CONDITIONS = {"holdout": "held-out traffic", "recorded_rate": "recorded rate", "repeat": "repeat"}


@dataclass(frozen=True, slots=True)
class Row:
    """One SLO class under one configuration and condition. p95_*: seconds, None where nothing finished."""

    slo_class: str
    role: str
    condition: str
    offered: int
    good: int
    attainment: Interval
    target: float
    holds: bool
    p95_ttft: float | None
    p95_tpot: float | None


def info(results: StudyResults, recommended: int | None) -> tuple[Row, ...]:
    """Rows by class, then condition, then role; conditions that were not measured have none."""
    rows: list[Row] = []
    for role, trial in compared(results, recommended):
        if trial.traffic is not None:
            rows += _rows(role, TUNED, trial.traffic)
        for validation in results.validations:
            if validation.trial == trial.number and validation.purpose in CONDITIONS:
                rows += _rows(role, _condition(validation, results), validation.traffic)
    order = list(dict.fromkeys(row.condition for row in rows))
    return tuple(sorted(rows, key=lambda r: (r.slo_class, order.index(r.condition), r.role != BASELINE)))


def _condition(validation: ValidationResult, results: StudyResults) -> str:
    """What was measured; the load is named where it is not the trials'."""
    name = CONDITIONS[validation.purpose]
    same = validation.time_scale == results.time_scale or validation.purpose == "recorded_rate"
    return name if same else f"{name}, {plain(validation.time_scale)}x"


def _rows(role: str, condition: str, traffic: TrafficMetrics) -> Iterator[Row]:
    for name, one in traffic.classes.items():
        yield Row(
            slo_class=name,
            role=role,
            condition=condition,
            offered=one.offered,
            good=one.good,
            attainment=one.attainment,
            target=one.target,
            holds=one.violation <= 0,
            p95_ttft=one.percentiles.get("ttft", {}).get(95),
            p95_tpot=one.percentiles.get("tpot", {}).get(95),
        )


def plot(rows: Sequence[Row]) -> go.Figure:
    """Bars of attainment with 95 % intervals, one panel a class, its target as a line."""
    classes = list(dict.fromkeys(row.slo_class for row in rows)) or [""]
    panels = make_subplots(
        rows=len(classes), cols=1, shared_xaxes=True, vertical_spacing=0.16 / len(classes),
        subplot_titles=[plotly_text(name) for name in classes],
    )  # fmt: skip
    shown = figure(90 + 190 * len(classes), barmode="group", bargap=0.35)
    panels.update_layout(shown.layout)
    panels.update_layout(legend={"y": 1 + 0.1 / len(classes)})
    for position, name in enumerate(classes, start=1):
        here = [row for row in rows if row.slo_class == name]
        for role in (BASELINE, RECOMMENDED):
            panels.add_trace(_bars([row for row in here if row.role == role], role, position == 1), position, 1)
        for target in {row.target for row in here}:
            dashes = {"dash": "dash", "width": 1.5, "color": GREY}
            panels.add_hline(y=target * 100, line=dashes, row=position, col=1)
    panels.update_yaxes(title_text="attainment (%)", range=[0, 105])
    return axes(panels)


def _bars(rows: Sequence[Row], role: str, in_legend: bool) -> go.Bar:
    return go.Bar(
        x=[row.condition.replace(" ", "<br>") for row in rows],
        y=[row.attainment.value * 100 for row in rows],
        error_y={
            "type": "data",
            "array": [(row.attainment.high - row.attainment.value) * 100 for row in rows],
            "arrayminus": [(row.attainment.value - row.attainment.low) * 100 for row in rows],
        },
        name=role,
        legendgroup=role,
        showlegend=in_legend,
        marker={"color": COLOURS[role], "pattern": {"shape": "/" if role == BASELINE else "", "solidity": 0.35}},
        hoverinfo="text",
        textposition="none",
        hovertext=[
            f"{role}, {row.condition}<br>attainment {percent_interval(row.attainment)}<br>"
            f"{row.good} good of {row.offered} offered, target {percent(row.target)}"
            for row in rows
        ],
    )
