"""The ladder of loads: time scales at which recorded traffic is replayed, each RATIO times the one below it.

Below capacity every configuration has the same goodput, and far above it none has any: what tells configurations apart
is how far up each of them holds its SLOs. The ladder starts at the recorded rate, which whatever is deployed must hold.
"""

from __future__ import annotations

import math

RATIO = 1.15
"""Wide enough that a rung more is worth having, narrow enough that half a rung is within a goodput's interval."""
RUNGS = 30
"""Up to 66 times the recorded rate."""


def scale(rung: int) -> float:
    """The time scale of a rung; rung 0 is the recorded rate."""
    return round(RATIO**rung, 3)


def above(time_scale: float) -> float:
    """The rung above a time scale, which need not be one of the ladder."""
    return scale(math.floor(math.log(time_scale, RATIO) + 0.5) + 1)


def below(time_scale: float) -> float | None:
    """The rung below a time scale; None below the recorded rate."""
    rung = math.ceil(math.log(time_scale, RATIO) - 0.5) - 1
    return scale(rung) if rung >= 0 else None
