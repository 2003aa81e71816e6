"""Baseline against recommended, number by number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reports.style import compared
from reports.text import NONE, interval, number, percent, percent_interval, seconds
from tuner.results import StudyResults, TrialResult
from tuner.scored import cost_of
from tuner.scoring.cost import Cost
from tuner.scoring.metrics import Interval

QUALITY = "1 = reference"
SHARE = "share"


@dataclass(frozen=True, slots=True)
class Row:
    """One metric; an Interval (95 %) where one is known, None where the trial does not have the number."""

    metric: str
    unit: str
    baseline: Interval | float | None
    recommended: Interval | float | None

    @property
    def change(self) -> float | None:
        """Recommended against baseline, per cent; None where not a ratio."""
        old, new = _point(self.baseline), _point(self.recommended)
        if self.unit in (QUALITY, SHARE) or not old or new is None:
            return None
        return (new / old - 1) * 100


def info(results: StudyResults, recommended: int | None) -> tuple[Row, ...]:
    """Goodput, p95 latencies and attainment by class, quality."""
    cost = cost_of(results.spec)
    values = [dict(_values(trial, cost)) for _, trial in compared(results, recommended)]
    before, after = values[0], values[1] if len(values) > 1 else {}
    return tuple(Row(*key, before.get(key), after.get(key)) for key in dict.fromkeys([*before, *after]))


def _values(trial: TrialResult, cost: Cost | None) -> Iterator[tuple[tuple[str, str], Interval | float | None]]:
    """(metric, unit) and value."""
    traffic, quality = trial.traffic, trial.quality
    if traffic is not None:
        yield ("goodput", "requests/s"), traffic.goodput
        yield from (((name, "requests"), per) for name, per in (cost.of(traffic.goodput).items() if cost else ()))
        yield ("output", "tokens/s"), traffic.output_tokens_per_second
        for name, one in traffic.classes.items():
            for metric in ("ttft", "tpot"):
                yield (f"p95 {metric.upper()}, {name}", "s"), one.percentiles.get(metric, {}).get(95)
        for name, one in traffic.classes.items():
            yield (f"SLO attainment, {name}", SHARE), one.attainment
    if quality is not None:
        yield ("quality", QUALITY), Interval(quality.value, quality.low, quality.high)


def shown(value: Interval | float | None, unit: str) -> str:
    """A value as a reader sees it: latencies and shares with their unit, the others without."""
    if value is None:
        return NONE
    if isinstance(value, Interval):
        return percent_interval(value) if unit == SHARE else interval(value, digits=4 if unit == QUALITY else 3)
    return {"s": seconds, SHARE: percent}.get(unit, number)(value)


def shown_change(change: float | None) -> str:
    """Per cent with its sign."""
    return "" if change is None else f"{'+' if change > 0 else ''}{number(change)} %".replace("-", "−")


def _point(value: Interval | float | None) -> float | None:
    return value.value if isinstance(value, Interval) else value
