"""Which knobs matter to which objective, alone and in pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from reports.style import BLUE, GREEN, VERMILLION, figure
from reports.text import knob_value, number, percent_interval, plotly_text
from tuner.anova import Anova, Interaction, analyse
from tuner.results import StudyResults, TrialResult
from tuner.scoring.metrics import Interval

GOODPUT, QUALITY, TAIL = "goodput", "quality", "tail latency"
COLOURS = {GOODPUT: BLUE, QUALITY: GREEN, TAIL: VERMILLION}
SYMBOLS = {GOODPUT: "circle", QUALITY: "square", TAIL: "diamond"}
LOAD = "load"
"""What stands for the time scale among the knobs: trials are replayed at loads that differ."""
TOLD = 0.2
"""Share of the variance of unseen trials from which on an analysis tells something."""


@dataclass(frozen=True, slots=True)
class Row:
    """One knob, or two together beyond what each does alone. share: of the explained variance of the objective, with
    its 95 % interval. observations, predicted: of the analysis (tuner.anova.Anova)."""

    objective: str
    knob: str
    second: str
    share: Interval
    observations: int
    predicted: float


def analyses(results: StudyResults) -> dict[str, Anova]:
    """Of each objective over the measured trials: goodput in requests/s, quality, ln of the tail latency in seconds.
    Objectives that do not vary, or are known of too few trials, are left out."""
    measured = [trial for trial in results.trials if trial.objectives is not None]
    asked = [trial for trial in measured if trial.quality is not None]
    found = {
        GOODPUT: _analysis(measured, [_objective(trial, 0) for trial in measured]),
        QUALITY: _analysis(asked, [_objective(trial, 1) for trial in asked]),
        TAIL: _analysis(measured, [math.log(max(_objective(trial, 2), 1e-6)) for trial in measured]),
    }
    return {name: one for name, one in found.items() if one is not None}


def _analysis(trials: Sequence[TrialResult], values: Sequence[float]) -> Anova | None:
    scales = {trial.time_scale for trial in trials}
    loads = [{LOAD: trial.time_scale} if len(scales) > 1 else {} for trial in trials]
    return analyse([{**trial.knobs, **load} for trial, load in zip(trials, loads, strict=True)], values)


def _objective(trial: TrialResult, place: int) -> float:
    assert trial.objectives is not None
    return trial.objectives[place]


def info(found: Mapping[str, Anova]) -> tuple[Row, ...]:
    """Rows by objective, knobs before pairs, the largest share first."""
    return tuple(row for objective, one in found.items() for row in _rows(objective, one))


def _rows(objective: str, found: Anova) -> Iterator[Row]:
    about = (found.observations, found.predicted)
    for effect in found.effects:
        share = Interval(effect.share, effect.share_low, effect.share_high)
        yield Row(objective, effect.knob, "", share, *about)
    for pair in found.interactions:
        yield Row(objective, *pair.knobs, Interval(pair.share, pair.share_low, pair.share_high), *about)


def plot(rows: Sequence[Row]) -> go.Figure:
    """Knobs by their share of goodput's variance, a marker an objective; pairs are in the table."""
    alone = [row for row in rows if not row.second]
    knobs = list(dict.fromkeys(row.knob for row in alone))
    shown = figure(120 + 46 * len(knobs), scattermode="group")
    for objective in dict.fromkeys(row.objective for row in alone):
        here = [row for row in alone if row.objective == objective]
        shown.add_scatter(
            x=[row.share.value * 100 for row in here], y=[plotly_text(row.knob) for row in here], mode="markers",
            name=objective, orientation="h", offsetgroup=objective,
            error_x={"type": "data", "array": [(row.share.high - row.share.value) * 100 for row in here],
                     "arrayminus": [(row.share.value - row.share.low) * 100 for row in here],
                     "color": COLOURS[objective]},
            marker={"symbol": SYMBOLS[objective], "size": 10, "color": COLOURS[objective]}, hoverinfo="text",
            hovertext=[f"{plotly_text(row.knob)}: {percent_interval(row.share)} of {objective}" for row in here],
        )  # fmt: skip
    shown.update_xaxes(title_text="share of the explained variance (%)", rangemode="tozero")
    shown.update_yaxes(type="category", autorange="reversed")
    return shown


def plot_pair(found: Anova, pair: Interaction) -> go.Figure:
    """Goodput over the levels of two knobs, the others averaged."""
    alone = {effect.knob: effect for effect in found.effects}
    first, second = (alone[knob] for knob in pair.knobs)
    goodput = [
        [found.mean + first.effect[i] + second.effect[j] + both for j, both in enumerate(row)]
        for i, row in enumerate(pair.effect)
    ]
    shown = figure(150 + 34 * len(first.levels))
    shown.add_heatmap(
        z=goodput,
        x=[plotly_text(knob_value(second.knob, level)) for level in second.levels],
        y=[plotly_text(knob_value(first.knob, level)) for level in first.levels],
        text=[[number(value) for value in row] for row in goodput], texttemplate="%{text}", colorscale="Cividis",
        showscale=False, xgap=2, ygap=2, hovertemplate="%{text} requests/s<extra></extra>",
    )  # fmt: skip
    shown.update_xaxes(title_text=plotly_text(second.knob), type="category")
    shown.update_yaxes(title_text=plotly_text(first.knob), type="category")
    return shown
