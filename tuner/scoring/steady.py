"""When a replay is past its warm-up, whether it holds still from then on, and whether its books balance.

What is cut is left out of the latency summary alone: it stays in attainment, goodput, violation and tail latency, or
each configuration would choose its own requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from tuner.scoring.slo import finished
from tuner.traffic.trace import RequestRecord

BATCH = 5
"""Observations a batch: MSER-5."""
FEWEST_BATCHES = 10
"""Fewer batches than this say nothing about a steady state."""
TREND_BATCHES = 10
TREND_CORRELATION, TREND_SIGNIFICANCE = 0.65, 0.05


@dataclass(frozen=True, slots=True)
class SteadyState:
    """start: seconds since the replay's start; requests scheduled before it are warm-up, `cut` of them.

    stationary: False where waiting goes on rising or falling (or where no cut in the first half makes it steady).
    in_flight: requests in the system, averaged over the time from start to the last arrival; balance: what Little's law
    makes of the arrivals in that time, arrival rate x mean stay. None where nothing was answered.
    """

    start: float = 0.0
    cut: int = 0
    stationary: bool = True
    in_flight: float | None = None
    balance: float | None = None
    stay: float = 0.0
    seconds: float = 0.0


def steady_state(records: Sequence[RequestRecord]) -> SteadyState:
    """Of one replay. Signals: TTFT, and requests in flight at each arrival; the later of both cuts counts."""
    answered = sorted((r for r in records if finished(r)), key=lambda record: record.scheduled)
    if not answered:
        return SteadyState()
    arrivals = np.array([record.scheduled for record in answered])
    ttft = np.array([record.token_times[0] - record.scheduled for record in answered])
    ends = np.sort([record.token_times[-1] for record in answered])
    present = (np.arange(len(answered)) - np.searchsorted(ends, arrivals)).astype(float)
    cuts = [mser5(ttft), mser5(present)]
    if len(answered) < BATCH * FEWEST_BATCHES:
        start, settled = 0.0, True
    else:
        first = max(cut or 0 for cut in cuts)
        start, settled = float(arrivals[first]) if first else 0.0, None not in cuts
    stationary = settled and not _trend(ttft[arrivals >= start])
    sent = [record for record in records if record.sent is not None]
    return SteadyState(
        start, sum(record.scheduled < start for record in records), stationary, *_little(sent, start, float(ends[-1]))
    )


def mser5(values: NDArray[np.float64]) -> int | None:
    """How many of the first values to cut; None where the rule finds no steady state in the first half.

    The cut d minimises the variance of the mean of what is left, sum (y - mean)^2 / (n - d)^2, over means of 5 values.
    Source: White, Cobb and Spratt, A comparison of five steady-state truncation heuristics, WSC 2000.
    """
    count = len(values) // BATCH
    if count < FEWEST_BATCHES:
        return 0
    means = np.asarray(values[: count * BATCH], dtype=float).reshape(count, BATCH).mean(axis=1)
    left = np.arange(count, count // 2, -1)
    sums, squares = means[::-1].cumsum()[left - 1], (means[::-1] ** 2).cumsum()[left - 1]
    statistic = (squares - sums**2 / left) / left.astype(float) ** 2
    best = int(statistic.argmin())
    return None if best == len(left) - 1 else best * BATCH


def _trend(values: NDArray[np.float64]) -> bool:
    """Whether the means of consecutive tenths go one way: Spearman's |r| > 0.65 at p < 0.05."""
    if len(values) < BATCH * TREND_BATCHES:
        return False
    means = [part.mean() for part in np.array_split(values, TREND_BATCHES)]
    if np.ptp(means) == 0:
        return False
    found = spearmanr(np.arange(TREND_BATCHES), means)
    return bool(abs(found.statistic) > TREND_CORRELATION and found.pvalue < TREND_SIGNIFICANCE)


def _little(
    sent: Sequence[RequestRecord], start: float, last_end: float
) -> tuple[float | None, float | None, float, float]:
    """L and lambda W over [start, last arrival], mean stay and length of that time. A request without an end stays
    until the last answer ended.

    Over a whole replay they are the same number; over a part of it they differ by what is carried over its ends.
    """
    arrivals = np.array([record.scheduled for record in sent])
    ends = np.array([record.token_times[-1] if finished(record) else last_end for record in sent])
    ends = np.maximum(ends, arrivals)
    end = float(arrivals.max())
    inside = (arrivals >= start) & (arrivals <= end)
    if end <= start or not inside.any():
        return None, None, 0.0, 0.0
    seconds = end - start
    present = np.clip(np.minimum(ends, end) - np.maximum(arrivals, start), 0.0, None).sum() / seconds
    stays = (ends - arrivals)[inside]
    return float(present), float(stays.sum() / seconds), float(stays.mean()), seconds
