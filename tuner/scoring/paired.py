"""The difference in goodput between two configurations under the same requests (formulas: docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tuner.scoring.intervals import CONFIDENCE, proportion_interval
from tuner.scoring.metrics import Interval
from tuner.scoring.slo import SLO, is_good
from tuner.traffic.trace import RequestRecord

SAMPLES = 4000
SEED = 0
FloatArray = npt.NDArray[np.float64]
Replays = Sequence[Sequence[RequestRecord]]


def good_differences(before: Replays, after: Replays, slos: Mapping[str, SLO]) -> FloatArray:
    """(rounds, requests): 1 where a request is good in `after` alone, -1 where in `before` alone, else 0.

    before, after: one replay a round, of the same requests. Columns are in the order of arrival.
    """
    rows = []
    for old, new in zip(before, after, strict=True):
        ordered = sorted(old, key=lambda record: (record.scheduled, record.request_id))
        good = {record.request_id: is_good(record, slos[record.slo_class]) for record in new}
        assert good.keys() == {record.request_id for record in old}, "the replays offered other requests"
        rows.append([float(good[r.request_id]) - is_good(r, slos[r.slo_class]) for r in ordered])
    return np.array(rows, dtype=np.float64)


def mean_difference(differences: FloatArray, block: int | None = None, samples: int = SAMPLES) -> Interval:
    """Mean over rounds and requests with its 95 % interval: percentiles of a bootstrap that draws rounds, and
    independently of them stretches of `block` consecutive requests (circular; default as their correlation asks).

    differences: (rounds, requests), requests in the order of arrival. Where no request differs in any round, the
    interval is that of none among as many as were offered. Sources: Politis and Romano (1992), circular blocks; Owen,
    Annals of Applied Statistics 1 (2007), rows and columns drawn apart; Politis and White (2004), the block's length.
    """
    rounds, n = differences.shape
    value = float(differences.mean())
    if not differences.any():
        most = proportion_interval(0, n)[1]
        return Interval(0.0, -most, most)
    length = block or block_length(differences)
    rng = np.random.default_rng(SEED)
    starts = rng.integers(0, n, size=(samples, -(-n // length)))
    last = n - length * (starts.shape[1] - 1)
    lengths = np.full(starts.shape[1], length)
    lengths[-1] = last
    drawn = rng.multinomial(rounds, np.full(rounds, 1 / rounds), size=samples) / rounds
    sums = np.cumsum(np.concatenate([np.zeros((rounds, 1)), differences, differences], axis=1), axis=1)
    by_round = (sums[:, starts + lengths] - sums[:, starts]).sum(axis=2) / n
    means = np.einsum("rs,sr->s", by_round, drawn)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))


def block_length(differences: FloatArray) -> int:
    """Consecutive requests that are drawn together: (6 r^2 / (1 - r^2)^2)^(1/3) n^(1/3), from 1 to 3 sqrt(n) and n / 3.

    r: the lag-1 autocorrelation of the differences, of all rounds together. It is Politis and White's rule for circular
    blocks (Econometric Reviews 23, 2004, eq. 9) where the differences are an AR(1) process.
    """
    n = differences.shape[1]
    deviations = differences - differences.mean(axis=1, keepdims=True)
    variance = float((deviations**2).sum())
    r = float((deviations[:, 1:] * deviations[:, :-1]).sum()) / variance if variance > 0 else 0.0
    if r <= 0:
        return 1
    r = min(r, 0.99)
    length = round((6 * r**2 / (1 - r**2) ** 2 * n) ** (1 / 3))
    return max(1, min(length, int(3 * n**0.5), n // 3))
