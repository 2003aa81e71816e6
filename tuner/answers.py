"""Answers: what is known of their quality, and what a configuration that answers so has to beat.

Configurations of the same quality key answer alike (adapters.quality_key), so that one of them tells the quality of
all. One that answers better than the best so far need not serve as much to be worth having: it enters the front of
goodput and quality where it serves more than any that answers at least as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Knobs = Mapping[str, Any]
QualityKey = Callable[[Knobs], str]
STEP = 5e-4
"""Of quality, exp(-nats lost a token): answers nearer than this are equally good."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What the probes told of one quality key. floor: the worst signed constraint, <= 0 is held."""

    quality: float
    floor: float

    @property
    def holds(self) -> bool:
        return self.floor <= 0


def to_beat(quality: float | None, feasible: Iterable[tuple[float, float]], least: float) -> float:
    """The largest value, goodput or load, among feasible (quality, value) that answer at least as well; `least` where
    there is none. quality None: not known, so that it has to beat them all."""
    return max((value for other, value in feasible if quality is None or other > quality - STEP), default=least)


class Told(Protocol):
    """A trial. floor: None where no probes were asked."""

    @property
    def knobs(self) -> Knobs: ...
    @property
    def quality(self) -> float: ...
    @property
    def floor(self) -> float | None: ...


def by_key(trials: Iterable[Told], quality_key: QualityKey) -> dict[str, Answered]:
    """What is known of each quality key."""
    return {quality_key(one.knobs): Answered(one.quality, one.floor) for one in trials if one.floor is not None}
