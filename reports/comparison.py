"""Baseline against recommended, number by number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reports.style import compared
from reports.text import NONE, interval, number, percent_interval, seconds
from tuner.results import StudyResults, TrialResult, cost_of
from tuner.scoring.cost import Cost
from tuner.scoring.metrics import Interval


@dataclass(frozen=True, slots=True)
class Row:
    """One metric. unit: "" where the values carry it. change: recommended against baseline, "" where not a ratio."""

    metric: str
    unit: str
    baseline: str
    recommended: str
    change: str


@dataclass(frozen=True, slots=True)
class _Value:
    text: str
    number: float | None
    unit: str = ""


def info(results: StudyResults, recommended: int | None) -> tuple[Row, ...]:
    """Goodput, p95 latencies and attainment by class, quality; intervals are 95 %."""
    cost = cost_of(results.spec)
    values = [dict(_values(trial, cost)) for _, trial in compared(results, recommended)]
    before, after = values[0], values[1] if len(values) > 1 else {}
    rows = []
    for metric in dict.fromkeys([*before, *after]):
        old, new = before.get(metric), after.get(metric)
        known = new or old
        assert known is not None
        rows.append(Row(metric, known.unit, _text(old), _text(new), _change(old, new)))
    return tuple(rows)


def _values(trial: TrialResult, cost: Cost | None) -> Iterator[tuple[str, _Value]]:
    traffic, quality = trial.traffic, trial.quality
    if traffic is not None:
        yield "goodput", _Value(interval(traffic.goodput), traffic.goodput.value, "requests/s")
        for name, per in cost.of(traffic.goodput).items() if cost is not None else ():
            yield name, _Value(interval(per), per.value, "requests")
        yield "output", _Value(number(traffic.output_tokens_per_second), traffic.output_tokens_per_second, "tokens/s")
        for name, one in traffic.classes.items():
            for metric in ("ttft", "tpot"):
                value = one.percentiles.get(metric, {}).get(95)
                yield f"p95 {metric.upper()}, {name}", _Value(seconds(value), value)
        for name, one in traffic.classes.items():
            yield f"SLO attainment, {name}", _Value(percent_interval(one.attainment), None)
    if quality is not None:
        shown = interval(Interval(quality.value, quality.low, quality.high), digits=4)
        yield "quality", _Value(shown, None, "1 = reference")


def _text(value: _Value | None) -> str:
    return NONE if value is None else value.text


def _change(old: _Value | None, new: _Value | None) -> str:
    if old is None or new is None or not old.number or new.number is None:
        return ""
    change = (new.number / old.number - 1) * 100
    return f"{'+' if change > 0 else ''}{number(change)} %".replace("-", "−")
