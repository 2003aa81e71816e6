"""One look for all figures: colours that colour-blind readers tell apart, and a layout for phones and paper.

Colours: Okabe and Ito (2008), those of them that stand out on white and on near-black. Text and grid take their colour
from the page (page.js), so that figures follow light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from tuner.results import StudyResults, TrialResult

BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#808080"
PURPLE, SKY, YELLOW = "#CC79A7", "#56B4E9", "#F0E442"
FEASIBLE, INFEASIBLE, FAILED = "feasible", "infeasible", "failed"
BASELINE, RECOMMENDED = "baseline", "recommended"
COLOURS = {FEASIBLE: BLUE, INFEASIBLE: GREY, FAILED: VERMILLION, BASELINE: VERMILLION, RECOMMENDED: GREEN}
SYMBOLS = {FEASIBLE: "circle", INFEASIBLE: "x-thin-open", FAILED: "triangle-down-open", BASELINE: "diamond",
           RECOMMENDED: "star"}  # fmt: skip


def figure(height: int, **layout: Any) -> go.Figure:
    """An empty figure, `height` in pixels, as wide as its place."""
    base: dict[str, Any] = {
        "height": height,
        "template": "none",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 64, "r": 16, "t": 40, "b": 56},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"align": "left"},
        "modebar": {"orientation": "v"},
    }
    shown = go.Figure(layout={**base, **layout})
    return axes(shown)


def axes(shown: go.Figure) -> go.Figure:
    """`shown` with all its axes in the common look."""
    look = {"automargin": True, "zeroline": False, "ticks": "outside", "title": {"font": {"size": 13}, "standoff": 8}}
    shown.update_xaxes(**look)
    shown.update_yaxes(**look)
    return shown


def seconds_axis(values: Sequence[float], most: int = 8) -> dict[str, Any]:
    """A logarithmic axis over these seconds, its ticks at 1, 2 and 5 of each decade (or at 1, where those are more than
    `most`), in milliseconds below one second."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    inside = [digit * 10.0**power for power in range(low, high + 1) for digit in (1, 2, 5)]
    ticks = [tick for tick in inside if min(positive) * 0.8 <= tick <= max(positive) * 1.25]
    if len(ticks) > most:
        ticks = [10.0**power for power in range(low, high + 1)]
    labels = [f"{tick * 1e3:g} ms" if tick < 1 else f"{tick:g} s" for tick in ticks]
    return {"type": "log", "tickvals": ticks, "ticktext": labels}


def rounded(values: Iterable[float]) -> list[float]:
    """Six significant digits, more than a figure shows: a page of many trials weighs less."""
    return [float(f"{value:.6g}") for value in values]


def compared(results: StudyResults, recommended: int | None) -> tuple[tuple[str, TrialResult], ...]:
    """Baseline, and the recommended trial if there is one and it is not the baseline, each with its role."""
    chosen = [(RECOMMENDED, t) for t in results.trials[1:] if t.number == recommended]
    return ((BASELINE, results.baseline), *chosen)
