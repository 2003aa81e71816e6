"""What the finalists did when they were measured again: other traffic, other loads, another moment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from reports.deciding import Replays, decisive, summed
from reports.style import BASELINE, COLOURS, RECOMMENDED, SKY, SYMBOLS, figure
from reports.text import interval, number, plain, plotly_text, wrapped
from tuner.results import StudyResults, TrialResult, ValidationResult
from tuner.scoring.metrics import Interval, TrafficMetrics

SEARCHED = "search"
CALIBRATION, ABLATION, VARIATION = "calibration", "ablation", "scenario"
"""Purposes of measurements that are no test of a finalist as it is: the window of a variation says what was varied."""
NAMES = {
    SEARCHED: "in the search",
    "repeat": "tuning window again",
    "holdout": "held-out traffic",
    "recorded_rate": "recorded rate",
    CALIBRATION: "finding the load",
}
THAT_LOAD, CLAIMED_LOAD = "that load", "the claimed load"
OTHER = "other finalist"


@dataclass(frozen=True, slots=True)
class Row:
    """One trial in one scenario. scenario: the purpose of the measurement, "search" for the trial itself, or in words
    what was varied of traffic or configuration (varied).

    offered, goodput: requests/s, None where the measurement failed. headroom: smallest share of an SLO class's bounds
    that is left, negative where missed. missed: constraints. failure: why there is no measurement, else "".
    """

    scenario: str
    trial: int
    role: str
    window: str
    time_scale: float
    offered: float | None
    goodput: Interval | None
    headroom: float | None
    missed: tuple[str, ...]
    failure: str
    varied: bool = False

    @property
    def holds(self) -> bool:
        """Every constraint that was measured holds."""
        return not self.missed and not self.failure


def info(results: StudyResults, recommended: int | None) -> tuple[Row, ...]:
    """Rows by scenario in the order of measurement, the search first, then baseline, recommended and the others."""
    again = [v for v in results.validations if v.purpose not in (CALIBRATION, ABLATION)]
    finalists = {v.trial for v in again} | {failure.trial for failure in results.validation_failures}
    roles = {results.baseline.number: BASELINE} | ({} if recommended is None else {recommended: RECOMMENDED})
    rows = [_searched(t, results, roles) for t in results.trials if t.number in finalists and t.traffic is not None]
    rows += [_validated(one, roles) for one in again]
    rows += _failed(results, roles)
    order = list(dict.fromkeys(row.scenario for row in rows))
    rank = {BASELINE: 0, RECOMMENDED: 1, OTHER: 2}
    return tuple(sorted(rows, key=lambda row: (order.index(row.scenario), rank[row.role], row.trial)))


def calibration(results: StudyResults) -> tuple[Row, ...]:
    """How the load was found: the baseline faster and faster."""
    return tuple(_validated(one, {0: BASELINE}) for one in results.validations if one.purpose == CALIBRATION)


def replays(rows: Iterable[Row]) -> tuple[Replays[Row], ...]:
    """The rows of each trial, scenario and load together; what failed stays by itself."""
    return summed(
        rows,
        what=lambda row: (row.scenario, row.trial, row.failure),
        goodput=lambda row: 0.0 if row.goodput is None else row.goodput.value,
    )


def decided(rows: Iterable[Row]) -> tuple[Replays[Row], ...]:
    """Of each trial and scenario one load, see reports.deciding."""
    return decisive(replays(rows), what=lambda row: (row.scenario, row.trial))


def _searched(trial: TrialResult, results: StudyResults, roles: dict[int, str]) -> Row:
    assert trial.traffic is not None
    missed = tuple(name for name, value in trial.constraints.items() if value > 0)
    return Row(SEARCHED, trial.number, roles.get(trial.number, OTHER), "tune", trial.time_scale or results.time_scale,
               trial.traffic.offered_rate, trial.traffic.goodput, headroom(trial.traffic), missed, "")  # fmt: skip


def _validated(one: ValidationResult, roles: dict[int, str]) -> Row:
    missed, varied = tuple(name for name, value in one.constraints.items() if value > 0), one.purpose == VARIATION
    scenario, window = (one.window, "tune") if varied else (one.purpose, one.window)
    return Row(scenario, one.trial, roles.get(one.trial, OTHER), window, one.time_scale, one.traffic.offered_rate,
               one.traffic.goodput, headroom(one.traffic), missed, "", varied)  # fmt: skip


def _failed(results: StudyResults, roles: dict[int, str]) -> Iterator[Row]:
    for one in results.validation_failures:
        why = ": ".join(part for part in (one.reason, one.detail) if part)
        role = roles.get(one.trial, OTHER)
        yield Row(one.purpose, one.trial, role, one.window, one.time_scale, None, None, None, (), why)


def headroom(traffic: TrafficMetrics) -> float | None:
    """Of the class that is closest to its bounds: the share of them that is left; negative where they are missed."""
    worst = max((one.violation for one in traffic.classes.values() if one.offered), default=None)
    return None if worst is None else left(worst)


def left(violation: float) -> float:
    """Share of its bounds that the deciding request leaves: 1 - latency / bound, of violation ln(latency / bound)."""
    return 1.0 - math.exp(violation)


def name(scenario: str) -> str:
    """The scenario in words; what was varied is in words already."""
    return NAMES.get(scenario, scenario.replace(THAT_LOAD, CLAIMED_LOAD))


def _label(scenario: str, rows: Sequence[Row]) -> str:
    """The scenario and its loads."""
    loads = [row.time_scale for row in rows]
    low, high = (f"{plain(load)}x" for load in (min(loads), max(loads)))
    return wrapped(f"{name(scenario)}, {low if low == high else f'{low} to {high}'}")


def plot(rows: Sequence[Row]) -> go.Figure:
    """Goodput with its interval, one line a scenario; what failed is not drawn."""
    drawn = [(one, one.row.goodput) for one in decided(rows) if one.row.goodput is not None]
    scenarios = dict.fromkeys(one.row.scenario for one, _ in drawn)
    labels = {each: _label(each, [one.row for one, _ in drawn if one.row.scenario == each]) for each in scenarios}
    heights = [max(46, 20 * (label.count("<br>") + 1)) for label in labels.values()]
    shown = figure(120 + sum(heights), scattermode="group")
    for role in (BASELINE, RECOMMENDED, OTHER):
        here = [(one, goodput) for one, goodput in drawn if one.row.role == role]
        colour = COLOURS.get(role, SKY)
        shown.add_scatter(
            x=[goodput.value for _, goodput in here], y=[labels[one.row.scenario] for one, _ in here],
            error_x={"type": "data", "array": [goodput.high - goodput.value for _, goodput in here],
                     "arrayminus": [goodput.value - goodput.low for _, goodput in here], "color": colour},
            mode="markers", orientation="h", offsetgroup=role, name=role, showlegend=bool(here),
            marker={"symbol": [SYMBOLS.get(role, "circle") + ("" if one.holds else "-open") for one, _ in here],
                    "size": 11, "color": colour}, hoverinfo="text",
            hovertext=[f"trial {one.row.trial}, {plotly_text(name(one.row.scenario))} at {plain(one.row.time_scale)}x"
                       f"<br>{interval(goodput)} of {number(one.row.offered)} requests/s; held {one.told}"
                       for one, goodput in here],
        )  # fmt: skip
    # Computed here because grouped markers upset Plotly's own range.
    ends = [end for _, goodput in drawn for end in (goodput.low, goodput.high)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = 0.06 * (high - low or 1.0)
    shown.update_xaxes(title_text="goodput (requests/s)", range=[low - room, high + room])
    shown.update_yaxes(type="category", autorange="reversed")
    return shown
