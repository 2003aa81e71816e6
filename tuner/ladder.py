"""The ladder of loads: time scales at which recorded traffic is replayed, each RATIO times the one below it.

Below capacity every configuration has the same goodput, and far above it none has any: what tells configurations apart
is how far up each of them holds its SLOs. The ladder starts at the recorded rate, which whatever is deployed must hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

RATIO = 1.15
"""Wide enough that a rung more is worth having, narrow enough that half a rung is within a goodput's interval."""
RUNGS = 30
"""Up to 66 times the recorded rate."""
STRIDE = 8
"""Rungs that one step may go up at most, to three times the load."""
FLAT_SLOPE = 2.0
"""Growth of a violation per unit of ln load on the way up: latency does not depend on load there as it does near the
knee."""
LEAST_SHARE = 0.25
"""Of the way from a rung that held to one that missed: the violation of a hopeless replay says little of how far."""
CONFIRMATIONS = 2
"""Replays that must miss, of one more than that, for the knee: one slow second of the machine is none."""


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


def next_look(found: Mapping[int, Sequence[float]], rungs: int) -> int | None:
    """The rung at which a knee is looked for next; None when it is known, see knee_of.

    found: rung -> its worst SLO constraints, in the order of the replays. rungs: of the ladder; rung 0 comes first.

    Upwards by what the last one has to spare; between a rung held and one missed on the line between them. Only the
    miss that bounds the knee is confirmed.
    """
    if 0 not in found:
        return 0
    held = {rung: min(values) for rung, values in found.items() if _held(values)}
    low = max(held, default=-1)
    high = min((rung for rung in found if rung > low), default=rungs)
    if high - low == 1:
        settled = high == rungs or sum(value > 0 for value in found[high]) >= CONFIRMATIONS
        return None if settled else high
    if high == rungs:
        spare = int(-held[low] / (FLAT_SLOPE * math.log(RATIO)))
        return min(low + min(max(spare, 1), STRIDE), rungs - 1)
    share = max(-held[low] / (max(found[high]) - held[low]), LEAST_SHARE)
    return min(max(low + int(share * (high - low)), low + 1), high - 1)


def knee_of(found: Mapping[int, Sequence[float]]) -> int:
    """The highest rung held: by its first replay, or by two of three. -1: not even rung 0."""
    return max((rung for rung, values in found.items() if _held(values)), default=-1)


def _held(values: Sequence[float]) -> bool:
    return values[0] <= 0 or sum(value <= 0 for value in values) >= CONFIRMATIONS
