"""Does each class and each tenant get what it was promised, at the tuned load and wherever it was measured again?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from reports import scenarios
from reports.deciding import Replays, decisive, summed
from reports.style import BASELINE, COLOURS, GREY, RECOMMENDED, axes, compared, figure
from reports.text import percent, percent_interval, plain, plotly_text, wrapped
from tuner.results import StudyResults
from tuner.scoring.metrics import ClassMetrics, Interval, TrafficMetrics

CLASS, TENANT = "class", "tenant"
OTHERS = (scenarios.CALIBRATION, scenarios.ABLATION, scenarios.VARIATION)
"""Purposes of measurements of something else than the trial's configuration under its traffic."""


@dataclass(frozen=True, slots=True)
class Row:
    """One SLO class, or one tenant, under one configuration and condition. p95_*: seconds, None where nothing finished.

    goodput: requests/s of the whole replay, of all classes. headroom: share of its bounds that the deciding request
    leaves, negative where missed; None where nothing was offered. lower: one-sided 95 % bound of the attainment.
    """

    group: str
    name: str
    role: str
    condition: str
    time_scale: float
    goodput: float
    offered: int
    good: int
    attainment: Interval
    target: float
    lower: float
    headroom: float | None
    holds: bool
    p95_ttft: float | None
    p95_tpot: float | None


def info(results: StudyResults, recommended: int | None) -> tuple[Row, ...]:
    """Rows by classes, then tenants, by name, condition and role; what was not measured has none."""
    rows: list[Row] = []
    for role, trial in compared(results, recommended):
        if trial.traffic is not None:
            rows += _rows(
                role, scenarios.name(scenarios.SEARCHED), trial.time_scale or results.time_scale, trial.traffic
            )
        for validation in results.validations:
            if validation.trial == trial.number and validation.purpose not in OTHERS:
                rows += _rows(role, scenarios.name(validation.purpose), validation.time_scale, validation.traffic)
    order = {condition: place for place, condition in enumerate(dict.fromkeys(row.condition for row in rows))}
    return tuple(sorted(rows, key=lambda r: (r.group, r.name, order[r.condition], r.role != BASELINE)))


def _rows(role: str, condition: str, time_scale: float, traffic: TrafficMetrics) -> Iterator[Row]:
    for group, found in ((CLASS, traffic.classes), (TENANT, traffic.tenants)):
        where = (role, condition, time_scale, traffic.goodput.value)
        yield from (_row(group, name, *where, one) for name, one in found.items())


def _row(group: str, name: str, role: str, condition: str, time_scale: float, goodput: float, one: ClassMetrics) -> Row:
    return Row(
        group=group,
        name=name,
        role=role,
        condition=condition,
        time_scale=time_scale,
        goodput=goodput,
        offered=one.offered,
        good=one.good,
        attainment=one.attainment,
        target=one.target,
        lower=one.lower,
        headroom=scenarios.left(one.violation) if one.offered else None,
        holds=one.violation <= 0,
        p95_ttft=one.percentiles.get("ttft", {}).get(95),
        p95_tpot=one.percentiles.get("tpot", {}).get(95),
    )


def worst(rows: Sequence[Row], count: int) -> tuple[Row, ...]:
    """The rows of the `count` names whose headroom is smallest in any of them, in the order of `rows`."""
    least: dict[str, float] = {}
    for row in rows:
        if row.headroom is not None:
            least[row.name] = min(row.headroom, least.get(row.name, row.headroom))
    kept = set(sorted(least, key=lambda name: (least[name], name))[:count])
    return tuple(row for row in rows if row.name in kept)


def same(classes: Sequence[Row], tenants: Sequence[Row]) -> bool:
    """Whether each tenant is the only one of a class of its own: the two then say the same."""
    return [replace(row, group=CLASS) for row in tenants] == list(classes)


def replays(rows: Iterable[Row]) -> tuple[Replays[Row], ...]:
    """The rows of each name, condition, role and load together."""
    return summed(rows, _what, goodput=lambda row: row.goodput)


def decided(rows: Iterable[Row]) -> tuple[Replays[Row], ...]:
    """Of each name, condition and role one load, see reports.deciding."""
    return decisive(replays(rows), _what)


def _what(row: Row) -> tuple[str, str, str]:
    return row.name, row.condition, row.role


def plot(rows: Sequence[Row]) -> go.Figure:
    """Bars of attainment with 95 % intervals, one panel a name, its target as a line."""
    classes = list(dict.fromkeys(row.name for row in rows)) or [""]
    panels = make_subplots(
        rows=len(classes), cols=1, shared_xaxes=True, vertical_spacing=0.16 / len(classes),
        subplot_titles=[plotly_text(name) for name in classes],
    )  # fmt: skip
    shown = figure(90 + 190 * len(classes), barmode="group", bargap=0.35)
    panels.update_layout(shown.layout)
    panels.update_layout(legend={"y": 1 + 0.1 / len(classes)})
    for position, name in enumerate(classes, start=1):
        here = [one.row for one in decided(row for row in rows if row.name == name)]
        for role in (BASELINE, RECOMMENDED):
            panels.add_trace(_bars([row for row in here if row.role == role], role, position == 1), position, 1)
        for target in {row.target for row in here}:
            dashes = {"dash": "dash", "width": 1.5, "color": GREY}
            panels.add_hline(y=target * 100, line=dashes, row=position, col=1)
    panels.update_yaxes(title_text="attainment (%)", range=[0, 105])
    return axes(panels)


def _bars(rows: Sequence[Row], role: str, in_legend: bool) -> go.Bar:
    return go.Bar(
        x=[wrapped(row.condition, 10) for row in rows],
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
            f"{role}, {plotly_text(row.condition)} at {plain(row.time_scale)}x<br>"
            f"attainment {percent_interval(row.attainment)}<br>"
            f"{row.good} good of {row.offered} offered, target {percent(row.target)}"
            for row in rows
        ],
    )
