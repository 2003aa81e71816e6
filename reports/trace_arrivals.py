"""When requests arrived: counts over time by class, and the gaps between them against a Poisson process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from reports.style import BLUE, GREEN, GREY, VERMILLION, figure
from reports.text import number, plotly_text, seconds
from tuner.traffic.inspection import Inspection
from tuner.traffic.statistics import bin_counts

NICE_SECONDS = (
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    20,
    30,
    60,
    120,
    300,
    600,
    1200,
    1800,
    3600,
    7200,
    21600,
    86400,
)
MOST_BINS = 150
OTHERS = "other classes"
CLASS_COLOURS = (BLUE, VERMILLION, GREEN, "#CC79A7", GREY)
GAP_BINS = 60


@dataclass(frozen=True, slots=True)
class Rates:
    """Requests per second of one class in bins of `width` seconds, from second 0."""

    name: str
    width: float
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Gaps:
    """Gaps above 0 in bins equal in logarithm. edges: seconds, one more than counts. expected: of a Poisson process."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    expected: tuple[float, ...]
    zero: int


def rates_info(found: Inspection) -> tuple[Rates, ...]:
    """One row a class, the largest first; from the fifth on together."""
    span = found.arrivals.span
    width = next((nice for nice in NICE_SECONDS if span / nice <= MOST_BINS), span / MOST_BINS)
    if span < 2 * width:
        return ()
    names = [group.name for group in found.classes]
    shown = names if len(names) <= len(CLASS_COLOURS) else names[: len(CLASS_COLOURS) - 1]
    rows = {name: [one.arrival for one in found.requests if one.slo_class == name] for name in shown}
    if len(shown) < len(names):
        rows[OTHERS] = [one.arrival for one in found.requests if one.slo_class not in shown]
    return tuple(
        Rates(name, width, tuple((bin_counts(np.array(arrivals), span, width) / width).tolist()))
        for name, arrivals in rows.items()
    )


def gaps_info(found: Inspection) -> Gaps | None:
    """None where there are too few different gaps for a picture."""
    gaps = np.diff([one.arrival for one in found.requests])
    positive = gaps[gaps > 0]
    if len(positive) < 2 or positive.min() == positive.max():
        return None
    # What is shorter than a hundred thousandth of the longest is no part of the picture: it would be most of its width.
    low, high = max(positive.min(), positive.max() * 1e-5), positive.max()
    edges = np.geomspace(low, high * (1 + 1e-9), GAP_BINS + 1)
    counts = np.histogram(np.maximum(positive, low), edges)[0]
    mean = float(gaps.mean())
    expected = np.diff(-np.exp(-edges / mean)) * len(gaps)
    return Gaps(tuple(edges.tolist()), tuple(counts.tolist()), tuple(expected.tolist()), int((gaps == 0).sum()))


def plot_rates(rows: Sequence[Rates]) -> go.Figure:
    """Classes stacked."""
    shown = figure(320, barmode="stack", bargap=0)
    for row, colour in zip(rows, CLASS_COLOURS, strict=False):
        middles = [(place + 0.5) * row.width for place in range(len(row.rates))]
        shown.add_bar(
            x=middles, y=row.rates, width=row.width, name=plotly_text(row.name),
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate="%{y:.3g} requests/s at %{x:.5g} s",
        )  # fmt: skip
    shown.update_xaxes(title_text="time (s)")
    shown.update_yaxes(title_text="requests/s", rangemode="tozero")
    return shown


def plot_gaps(gaps: Gaps) -> go.Figure:
    """Bars: the trace; line: a Poisson process of the same rate."""
    shown = figure(320, bargap=0)
    pairs = list(zip(gaps.edges, gaps.edges[1:], strict=False))
    middles = [math.sqrt(low * high) for low, high in pairs]
    told = [f"{seconds(low)} to {seconds(high)}: {n}" for (low, high), n in zip(pairs, gaps.counts, strict=True)]
    shown.add_bar(
        x=middles, y=gaps.counts, width=[high - low for low, high in pairs], name="gaps", hoverinfo="text",
        marker={"color": BLUE, "line": {"width": 0}}, hovertext=told,
    )  # fmt: skip
    shown.add_scatter(
        x=middles, y=gaps.expected, mode="lines", name="Poisson of the same rate",
        line={"color": VERMILLION, "width": 2},
        hoverinfo="text", hovertext=[f"Poisson: {number(value)}" for value in gaps.expected],
    )  # fmt: skip
    shown.update_xaxes(title_text="gap (s)", type="log", exponentformat="power")
    shown.update_yaxes(title_text="gaps", rangemode="tozero")
    return shown
