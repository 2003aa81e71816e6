"""Over-saturation: the requests in flight and the wait for the first token both keep growing.

After guidellm's over-saturation stop: both slopes are positive by their 95 % t-intervals. It regresses every sample as
if they were independent; ours are the means of BATCHES stretches of time, which are nearly so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import linregress, t

BATCHES = 8


@dataclass(frozen=True, slots=True)
class Growth:
    """A line through means over time. slope, low, high: per second, with its 95 % interval. last: the latest mean."""

    slope: float
    low: float
    high: float
    last: float


def growth(times: Sequence[float], values: Sequence[float], start: float, end: float) -> Growth | None:
    """The line through the means of `values` over BATCHES equal parts of [start, end] seconds; None where a part has
    none. A perfectly straight line has an interval of no width."""
    edges = np.linspace(start, end, BATCHES + 1)
    place = np.searchsorted(edges, times, side="right") - 1
    inside = (place >= 0) & (place < BATCHES)
    counts = np.bincount(place[inside], minlength=BATCHES)
    if not counts.all():
        return None
    means = np.bincount(place[inside], np.asarray(values)[inside], BATCHES) / counts
    line = linregress((edges[:-1] + edges[1:]) / 2, means)
    half = float(t.ppf(0.975, BATCHES - 2)) * float(line.stderr)
    slope = float(line.slope)
    return Growth(slope, slope - half, slope + half, float(means[-1]))
