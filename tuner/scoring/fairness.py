"""How evenly tenants are served, and what one request waits for another (formulas: docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tuner.scoring.slo import failure_reason, latencies
from tuner.traffic.trace import RequestRecord

JAIN_GATE = 0.95
"""Index of attainment over tenants from which a server counts as fair."""
HEAD_OF_LINE_GATE = 2.0
"""Factor by which long prompts may slow the first tokens of short ones right behind them."""


def jain(shares: Sequence[float]) -> float:
    """Jain's index (sum x)^2 / (K sum x^2) of K values >= 0: 1 when all are equal, 1/K when one has everything.

    1 for no values and for zeros: nobody has more than another. Source: Jain, Chiu and Hawe, DEC-TR-301 (1984).
    """
    largest = max(shares, default=0.0)
    if largest == 0.0:
        return 1.0
    # Of shares of the largest, so that tiny values do not vanish when squared.
    scaled = [share / largest for share in shares]
    return sum(scaled) ** 2 / (len(scaled) * sum(share * share for share in scaled))


def slowdowns(shared: Iterable[RequestRecord], alone: Iterable[RequestRecord]) -> list[float]:
    """E2E with everybody's traffic / E2E with one's own alone, of each request that was answered alone.

    Infinite for one that was answered only alone. The two replays are paired by request id.
    """
    before = {record.request_id: latencies(record)["e2e"] for record in alone if failure_reason(record) is None}
    return [
        math.inf if failure_reason(record) is not None else latencies(record)["e2e"] / before[record.request_id]
        for record in shared
        if record.request_id in before
    ]


def first_token_times(records: Iterable[RequestRecord]) -> list[float]:
    """TTFT in seconds; infinite for a request that is bad whatever its latency."""
    return [math.inf if failure_reason(record) is not None else latencies(record)["ttft"] for record in records]
