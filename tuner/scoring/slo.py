"""SLOs: is a request good, and by how much does a class of requests hold or miss (formulas: docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuner.traffic.trace import RequestRecord

LATENCIES = ("ttft", "tpot", "itl", "e2e")
BADNESS_CAP = 3.0
"""Largest |badness|: exp(3) = 20 times its bound, in either direction. A bad request has exactly this much."""


@dataclass(frozen=True, slots=True)
class SLO:
    """Bounds in seconds, None where unset, and the share of the offered requests that must meet all of them."""

    ttft: float | None = None
    tpot: float | None = None
    itl: float | None = None
    e2e: float | None = None
    attainment: float = 0.95

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are set: metric -> seconds."""
        return {name: bound for name in LATENCIES if (bound := getattr(self, name)) is not None}


def finished(record: RequestRecord) -> bool:
    """The server delivered an answer and ended it."""
    return record.error is None and record.finish_reason is not None and bool(record.token_times)


def wrong_length(record: RequestRecord) -> bool:
    """The answer ended, but not with the number of tokens that the replay asked for."""
    return finished(record) and record.expected_tokens is not None and record.output_tokens != record.expected_tokens


def latencies(record: RequestRecord) -> Mapping[str, float]:
    """The latencies of a finished request in seconds, counted from its scheduled arrival.

    ttft, e2e: always. tpot, itl (the longest gap): only from two tokens on; a one-token answer has none.
    """
    assert finished(record), f"{record.request_id}: latencies of an unfinished request"
    times = record.token_times
    values = {"ttft": times[0] - record.scheduled, "e2e": times[-1] - record.scheduled}
    if record.output_tokens > 1:
        values["tpot"] = (times[-1] - times[0]) / (record.output_tokens - 1)
    if len(times) > 1:
        values["itl"] = max(token_gaps(record))
    return values


def token_gaps(record: RequestRecord) -> list[float]:
    """Seconds between consecutive tokens; 0 between tokens that came in one chunk."""
    times = record.token_times
    return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]


def badness(record: RequestRecord, slo: SLO) -> float:
    """max over the bounds of ln(latency / bound), within [-BADNESS_CAP, BADNESS_CAP]; <= 0 for a good request.

    Unfinished, failed and wrongly long answers have BADNESS_CAP: dropping a late request never pays.
    """
    if not finished(record) or wrong_length(record):
        return BADNESS_CAP
    values = latencies(record)
    ratios = [values[name] / bound for name, bound in slo.bounds.items() if name in values]
    worst = max(ratios, default=0.0)
    if worst <= math.exp(-BADNESS_CAP):
        return -BADNESS_CAP
    return min(math.log(worst), BADNESS_CAP)


def is_good(record: RequestRecord, slo: SLO) -> bool:
    """The request was answered, at the right length, within every bound that is set."""
    return badness(record, slo) <= 0.0


def required_good(attainment: float, offered: int) -> int:
    """The fewest good requests that make up the share `attainment` of `offered`."""
    # 0.07 * 100 is 7.000000000000001 in binary; without the allowance an eighth request would be asked for.
    return math.ceil(attainment * offered - 1e-9)


def violation(records: Sequence[RequestRecord], slo: SLO) -> float:
    """Signed distance from the SLO in log-latency, within [-BADNESS_CAP, BADNESS_CAP].

    <= 0 exactly when at least the share slo.attainment of the offered requests is good; 0 when none was offered.
    """
    return attainment_violation([badness(record, slo) for record in records], slo.attainment)


def attainment_violation(badnesses: Sequence[float], attainment: float) -> float:
    """The required_good-th smallest badness: how far the last request that must be good is from being so."""
    if not badnesses:
        return 0.0
    rank = max(required_good(attainment, len(badnesses)), 1)
    return sorted(badnesses)[rank - 1]
