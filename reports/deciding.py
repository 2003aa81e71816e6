"""Of several replays of one configuration, what a figure or a table shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from tuner.finals import mostly


class Replayed(Protocol):
    """time_scale: times the recorded rate."""

    @property
    def time_scale(self) -> float: ...
    @property
    def holds(self) -> bool: ...


R = TypeVar("R", bound=Replayed)


@dataclass(frozen=True, slots=True)
class Replays(Generic[R]):
    """All replays of one thing at one load. row: the median one by goodput, as tuner.worth has it."""

    row: R
    held: int
    count: int

    @property
    def holds(self) -> bool:
        """Most of them did."""
        return mostly([True] * self.held + [False] * (self.count - self.held))

    @property
    def told(self) -> str:
        """Whether it held, or how often."""
        return f"{self.held} of {self.count}" if self.count > 1 else "yes" if self.holds else "no"


def summed(rows: Iterable[R], what: Callable[[R], Hashable], goodput: Callable[[R], float]) -> tuple[Replays[R], ...]:
    """The replays of each thing at each of its loads, in the order in which they first came."""
    found: dict[tuple[Hashable, float], list[R]] = {}
    for row in rows:
        found.setdefault((what(row), row.time_scale), []).append(row)
    return tuple(
        Replays(sorted(here, key=goodput)[math.ceil(len(here) / 2) - 1], sum(row.holds for row in here), len(here))
        for here in found.values()
    )


def decisive(found: Sequence[Replays[R]], what: Callable[[R], Hashable]) -> tuple[Replays[R], ...]:
    """Of each thing the highest load at which most replays held, or else the lowest that was tried."""
    things: dict[Hashable, list[Replays[R]]] = {}
    for one in found:
        things.setdefault(what(one.row), []).append(one)
    return tuple(_decisive(loads) for loads in things.values())


def _decisive(loads: Sequence[Replays[R]]) -> Replays[R]:
    held = [one for one in loads if one.holds]
    if held:
        return max(held, key=lambda one: one.row.time_scale)
    return min(loads, key=lambda one: one.row.time_scale)
