"""The ladder of loads: time scales at which recorded traffic is replayed, each RATIO times the one below it.

Below capacity every configuration has the same goodput, and far above it none has any: what tells configurations apart
is how far up each of them holds its SLOs. The ladder goes some rungs below the recorded rate: who does not hold that
either serves part of the traffic, beside replicas, and how large a part is what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

RATIO = 1.15
"""Wide enough that a rung more is worth having, narrow enough that half a rung is within a goodput's interval."""
LOWEST, HIGHEST = -5, 30
"""From half to 66 times the recorded rate. At less a replay takes more than twice the time that was recorded."""
STRIDE = 8
"""Rungs that one step may go at most, to three times the load or a third."""
FLAT_SLOPE = 2.0
"""Growth of a violation per unit of ln load far from the knee: latency does not depend on load there as it does
near it."""
LEAST_SHARE = 0.25
"""Of the way from a rung that held to one that missed: the violation of a hopeless replay says little of how far."""
ROUNDED = 0.25
"""Of a rung, by which a time scale may be off and still is that rung."""
CONFIRMATIONS = 2
"""Replays that must miss, of one more than that, for the knee: one slow second of the machine is none."""


def scale(rung: int) -> float:
    """The time scale of a rung, LOWEST to HIGHEST; rung 0 is the recorded rate."""
    return round(RATIO**rung, 3)


SCALES = tuple(scale(rung) for rung in range(LOWEST, HIGHEST + 1))
"""The ladder from its lowest rung on."""


def above(time_scale: float) -> float:
    """The rung above a time scale, which need not be one of the ladder."""
    return scale(math.floor(math.log(time_scale, RATIO) + ROUNDED) + 1)


def below(time_scale: float) -> float | None:
    """The rung below a time scale; None below the lowest."""
    rung = math.ceil(math.log(time_scale, RATIO) - ROUNDED) - 1
    return scale(rung) if rung >= LOWEST else None


def next_look(found: Mapping[int, Sequence[float]], rungs: int, first: int = 0) -> int | None:
    """The rung at which a knee is looked for next; None when it is known, see knee_of.

    found: rung -> its worst SLO constraints, in the order of the replays. rungs: of the ladder, counted from its
    lowest, which is 0. first: the one that is looked at first.

    Upwards by what the last one has to spare, downwards by what it lacks; between a rung held and one missed on the
    line between them. Confirmed are the miss that bounds the knee, and one of the first before it goes down.
    """
    if first not in found:
        return first
    held = {rung: min(values) for rung, values in found.items() if _held(values)}
    low = max(held, default=-1)
    high = min((rung for rung in found if rung > low), default=rungs)
    if high == first > 0 and not _missed(found[high]):
        return high
    if high - low == 1:
        return None if high == rungs or _missed(found[high]) else high
    if high == rungs:
        return min(low + _stride(-held[low]), rungs - 1)
    if low == -1:
        return max(high - _stride(max(found[high])), 0)
    share = max(-held[low] / (max(found[high]) - held[low]), LEAST_SHARE)
    return min(max(low + int(share * (high - low)), low + 1), high - 1)


def _missed(values: Sequence[float]) -> bool:
    return sum(value > 0 for value in values) >= CONFIRMATIONS


def _stride(violation: float) -> int:
    """Rungs for a violation, or for as much to spare."""
    return min(max(int(violation / (FLAT_SLOPE * math.log(RATIO))), 1), STRIDE)


def knee_of(found: Mapping[int, Sequence[float]]) -> int:
    """The highest rung held: by its first replay, or by two of three. -1: not even the lowest."""
    return max((rung for rung, values in found.items() if _held(values)), default=-1)


def _held(values: Sequence[float]) -> bool:
    return values[0] <= 0 or sum(value <= 0 for value in values) >= CONFIRMATIONS
