"""Distribution functions of TTFT and of the gaps between tokens, by class: where between median and tail it is won."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from reports.evidence import Evidence
from reports.style import BASELINE, COLOURS, GREY, RECOMMENDED, compared, figure, seconds_axis
from reports.text import number, plain, plotly_text, seconds
from tuner.results import StudyResults, TrialResult
from tuner.scoring.slo import finished, token_gaps
from tuner.stored import StoredMeasurement
from tuner.worth import proven

METRICS = ("ttft", "itl")
POINTS = 160
TAIL_POINTS = 8
"""The slowest values are all kept."""
SHORTEST = 1e-4
"""Seconds; shorter gaps (tokens that came in one chunk) are drawn here, for a logarithmic axis has no 0."""


@dataclass(frozen=True, slots=True)
class Row:
    """share of the offered requests (ttft) or of the gaps (itl) take at most `seconds`. bound: the SLO's, seconds.

    A ttft curve ends below 1 where requests were refused, failed or never answered. time_scale: of the replay.
    """

    slo_class: str
    metric: str
    role: str
    time_scale: float
    share: float
    seconds: float
    bound: float | None


def info(results: StudyResults, recommended: int | None, evidence: Evidence) -> tuple[Row, ...]:
    """Rows by class, metric, role and share; a curve is thinned out to about POINTS.

    At the recorded rate where all were measured there (loads that differ do not compare), else where each is worth what
    it is worth.
    """
    trials = compared(results, recommended)
    again = [evidence.again(trial.number, "recorded_rate") for _, trial in trials]
    found = again if None not in again else [_behind(results, trial, evidence) for _, trial in trials]
    rows: list[Row] = []
    for (role, _), stored in zip(trials, found, strict=True):
        if stored is not None:
            rows += (row for name in results.spec.slos for row in _rows(name, role, stored, results))
    return tuple(sorted(rows, key=lambda row: (row.slo_class, METRICS.index(row.metric), row.role != BASELINE)))


def _behind(results: StudyResults, trial: TrialResult, evidence: Evidence) -> StoredMeasurement | None:
    return None if trial.traffic is None else evidence.behind(trial, proven(results, trial))


def _rows(slo_class: str, role: str, stored: StoredMeasurement, results: StudyResults) -> Iterator[Row]:
    offered = [record for record in stored.measurement.records if record.slo_class == slo_class]
    answered = [record for record in offered if finished(record)]
    slo = results.spec.slos[slo_class]
    # A bound that grows with the prompt is no line in this picture.
    ttft = slo.ttft if slo.ttft_per_1k_prompt_tokens is None else None
    values = {
        "ttft": ([record.token_times[0] - record.scheduled for record in answered], len(offered), ttft),
        "itl": ([gap for record in answered for gap in token_gaps(record)], 0, slo.itl),
    }
    for metric, (found, total, bound) in values.items():
        for share, value in thinned(found, total or len(found)):
            yield Row(slo_class, metric, role, stored.measurement.time_scale, share, value, bound)


def thinned(values: Sequence[float], total: int) -> list[tuple[float, float]]:
    """(share of `total` at most this large, value) of some of the values, ascending: evenly many over the shares, and
    the largest all."""
    ordered, count = np.sort(np.asarray(values, dtype=float)), len(values)
    places = np.union1d(np.linspace(0, count - 1, POINTS).round(), np.arange(count - TAIL_POINTS, count))
    kept = places[(places >= 0) & (places < count)].astype(int)
    return [((int(place) + 1) / total, float(ordered[place])) for place in kept]


def plot(rows: Sequence[Row]) -> dict[tuple[str, str], go.Figure]:
    """One small figure a class and metric."""
    keys = dict.fromkeys((row.slo_class, row.metric) for row in rows)
    return {key: _panel(*key, [row for row in rows if (row.slo_class, row.metric) == key]) for key in keys}


def _panel(slo_class: str, metric: str, rows: Sequence[Row]) -> go.Figure:
    shown = figure(260, margin={"l": 52, "r": 12, "t": 64, "b": 44})
    bound = next((row.bound for row in rows if row.bound is not None), None)
    name = f"{metric.upper()}, {slo_class}" + ("" if bound is None else f", SLO {seconds(bound)}")
    title = {"text": plotly_text(name), "font": {"size": 14}, "x": 0.02, "y": 0.97}
    shown.update_layout(title=title, hovermode="x")
    for role, dash in ((BASELINE, "dash"), (RECOMMENDED, "solid")):
        here = [row for row in rows if row.role == role]
        shown.add_scatter(
            x=[max(row.seconds, SHORTEST) for row in here], y=[row.share * 100 for row in here],
            mode="lines", name=role if not here else f"{role}, {plain(here[0].time_scale)}x",
            line={"shape": "hv", "color": COLOURS[role], "width": 2, "dash": dash},
            hoverinfo="text",
            hovertext=[f"{role}: {number(row.share * 100)} % within {seconds(row.seconds)}" for row in here],
        )  # fmt: skip
    if bound is not None:
        shown.add_vline(x=bound, line={"dash": "dot", "width": 1.5, "color": GREY})
    drawn = [max(row.seconds, SHORTEST) for row in rows] + ([bound] if bound is not None else [])
    shown.update_xaxes(seconds_axis(drawn, most=5))
    shown.update_yaxes(title_text="%", range=[0, 102])
    return shown
