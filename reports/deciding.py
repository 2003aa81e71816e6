"""Of several replays of one configuration, the one that a figure shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from tuner.finals import mostly


class Replayed(Protocol):
    """time_scale: times the recorded rate."""

    @property
    def time_scale(self) -> float: ...
    @property
    def holds(self) -> bool: ...


R = TypeVar("R", bound=Replayed)


def decisive(rows: Sequence[R]) -> R:
    """A replay of the highest load at which most held, as tuner.worth has it, or else of the lowest that was tried: the
    last one there that says what most say."""
    by_load: dict[float, list[R]] = {}
    for row in rows:
        by_load.setdefault(row.time_scale, []).append(row)
    held = [scale for scale, here in by_load.items() if mostly([row.holds for row in here])]
    shown = by_load[max(held) if held else min(by_load)]
    return [row for row in shown if row.holds == bool(held)][-1]
