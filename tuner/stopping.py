"""When a search has had enough: its budget, a plateau of what it found, or nothing left that the model hopes for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tuner.pareto import hypervolume

Stop = Literal["trials", "seconds", "plateau", "decided", "broken", "interrupted"]
WORDS: dict[Stop, str] = {
    "trials": "the budget of trials is spent",
    "seconds": "the budget of seconds is spent",
    "plateau": "a plateau: the feasible trials' hypervolume has not grown by more than 0.5 % for a while",
    "decided": "decided: the model expects less than 0.5 % more goodput of any configuration that is left",
    "broken": "given up: trial after trial broke for reasons outside its configuration",
    "interrupted": "it was interrupted, or goes on: it has not come to its end",
}
"""interrupted is stored when a search begins, so that kill -9 leaves it too."""
GROWTH = 0.005
"""Of the hypervolume, relative: less is none. Also the improvement of goodput below which there is no hope."""
PATIENCE, PATIENCE_PER_KNOB = 10, 2
HOPELESS_TRIALS = 3
"""Proposals of the model in a row that promise less than GROWTH."""
WORST = (0.0, 0.0)
"""Reference point of (goodput, quality)."""


def plateau(found: Sequence[tuple[float, float] | None], knobs: int) -> bool:
    """Whether the last max(10, 2 knobs) trials have grown the hypervolume by no more than GROWTH.

    found: (goodput, quality) of every trial in order, None for one that is not feasible. As long as nothing is
    feasible there is no plateau.
    """
    patience = max(PATIENCE, PATIENCE_PER_KNOB * knobs)
    before, now = _volume(found[:-patience]), _volume(found)
    return before > 0 and now <= before * (1 + GROWTH)


def decided(hopes: Sequence[float]) -> bool:
    """Whether the last HOPELESS_TRIALS of the model's proposals promised next to nothing.

    hopes: expected improvement of ln goodput over the best, of each of its proposals in order.
    """
    last = hopes[-HOPELESS_TRIALS:]
    return len(last) == HOPELESS_TRIALS and max(last) < GROWTH


def _volume(found: Sequence[tuple[float, float] | None]) -> float:
    points = [point for point in found if point is not None]
    return hypervolume(np.array(points), WORST, ["maximize", "maximize"]) if points else 0.0
