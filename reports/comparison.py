"""Baseline against recommended, number by number."""

from __future__ import annotations

from dataclasses import dataclass

from reports.text import NONE, interval, number, quality, seconds
from tuner.recommend import Recommendation
from tuner.scoring.metrics import Interval

QUALITY = "1 = reference"


@dataclass(frozen=True, slots=True)
class Row:
    """One metric; an Interval (95 %) where one is known, None where the configuration does not have the number."""

    metric: str
    unit: str
    baseline: Interval | float | None
    recommended: Interval | float | None

    @property
    def change(self) -> float | None:
        """Recommended against baseline, per cent; None where not a ratio."""
        old, new = point(self.baseline), point(self.recommended)
        if self.unit == QUALITY or not old or new is None:
            return None
        return (new / old - 1) * 100


def info(recommendation: Recommendation) -> tuple[Row, ...]:
    """The recommendation's own gains; of an abstention, those of the trial that came closest."""
    return tuple(
        Row(
            metric=gain.name,
            unit=QUALITY if gain.name == "quality" else gain.unit,
            baseline=gain.baseline if gain.baseline_interval is None else gain.baseline_interval,
            recommended=gain.recommended if gain.recommended_interval is None else gain.recommended_interval,
        )
        for gain in recommendation.gains
    )


def shown(value: Interval | float | None, unit: str) -> str:
    """A value as a reader sees it: latencies with their unit, the others without."""
    if value is None:
        return NONE
    if isinstance(value, Interval):
        return quality(value) if unit == QUALITY else interval(value)
    return seconds(value) if unit == "s" else number(value)


def shown_change(change: float | None) -> str:
    """Per cent with its sign."""
    return "" if change is None else f"{'+' if change > 0 else ''}{number(change)} %"


def point(value: Interval | float | None) -> float | None:
    """The number itself."""
    return value.value if isinstance(value, Interval) else value
