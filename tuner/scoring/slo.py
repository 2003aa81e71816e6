"""SLOs: is a request good, and by how much does a class of requests hold or miss (formulas: docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuner.scoring.fluidity import deadline_stretch
from tuner.traffic.trace import RequestRecord

LATENCIES = ("ttft", "tpot", "itl", "e2e")
BADNESS_CAP = 3.0
"""Largest |badness|: exp(3) = 20 times its bound, in either direction. A bad request has exactly this much."""


@dataclass(frozen=True, slots=True)
class SLO:
    """Bounds in seconds, None where unset, and the share of the offered requests that must meet all of them.

    ttft_per_1k_prompt_tokens: added to ttft for each thousand tokens of the request's prompt; alone, it is the whole
    bound. itl_quantile: which of a request's gaps the itl bound holds, None for the longest. fluidity: share of the
    token deadlines that must be met; ttft and tpot, which it needs, are then the deadlines too (see scoring.fluidity).
    """

    ttft: float | None = None
    tpot: float | None = None
    itl: float | None = None
    e2e: float | None = None
    attainment: float = 0.95
    ttft_per_1k_prompt_tokens: float | None = None
    itl_quantile: float | None = None
    fluidity: float | None = None

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are the same for every request: metric -> seconds."""
        return {name: bound for name in LATENCIES if (bound := getattr(self, name)) is not None}

    def ttft_bound(self, prompt_tokens: int | None) -> float | None:
        """Seconds allowed to the first token after a prompt of so many tokens (unknown: as if it had none)."""
        if self.ttft_per_1k_prompt_tokens is None:
            return self.ttft
        return (self.ttft or 0.0) + self.ttft_per_1k_prompt_tokens * (prompt_tokens or 0) / 1000


def finished(record: RequestRecord) -> bool:
    """The server delivered an answer and ended it."""
    return record.error is None and record.finish_reason is not None and bool(record.token_times)


def wrong_length(record: RequestRecord) -> bool:
    """The answer ended, but not with the number of tokens that the replay asked for."""
    return finished(record) and record.expected_tokens is not None and record.output_tokens != record.expected_tokens


def failure_reason(record: RequestRecord) -> str | None:
    """Why a request is bad whatever its latency: its error, "unfinished" or "wrong_length"; None if it was answered."""
    if not finished(record):
        return record.error or "unfinished"
    return "wrong_length" if wrong_length(record) else None


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


def distances(record: RequestRecord, slo: SLO) -> dict[str, float]:
    """Of an answered request, for each bound that is set and defined: ln(latency / bound), <= 0 where it is met.

    For fluidity: ln of the factor by which all deadlines would have to be longer. Within [-BADNESS_CAP, BADNESS_CAP].
    """
    values = dict(latencies(record))
    if slo.itl_quantile is not None and "itl" in values:
        values["itl"] = smallest_bound(token_gaps(record), slo.itl_quantile)
    bounds = slo.bounds
    if (ttft := slo.ttft_bound(record.prompt_tokens)) is not None:
        bounds["ttft"] = ttft
    found = {name: _log_ratio(values[name], bound) for name, bound in bounds.items() if name in values}
    if slo.fluidity is not None:
        assert ttft is not None and slo.tpot is not None, "fluidity needs ttft and tpot"
        gaps = [values["ttft"], *token_gaps(record)]
        found["fluidity"] = deadline_stretch(gaps, ttft, slo.tpot, slo.fluidity)
    return found


def _log_ratio(value: float, bound: float) -> float:
    if value <= bound * math.exp(-BADNESS_CAP):
        return -BADNESS_CAP
    return BADNESS_CAP if bound == 0 else min(math.log(value / bound), BADNESS_CAP)


def badness(record: RequestRecord, slo: SLO) -> float:
    """The largest of the request's distances, within [-BADNESS_CAP, BADNESS_CAP]; <= 0 for a good request.

    Unfinished, failed and wrongly long answers have BADNESS_CAP: dropping a late request never pays.
    """
    if failure_reason(record) is not None:
        return BADNESS_CAP
    return max(distances(record, slo).values(), default=-BADNESS_CAP)


def cause(record: RequestRecord, slo: SLO) -> str | None:
    """What makes a request bad: its failure, or the bound that it misses by the largest factor; None for a good one."""
    if (failure := failure_reason(record)) is not None:
        return failure
    found = distances(record, slo)
    worst = max(found, key=lambda name: found[name], default=None)
    return worst if worst is not None and found[worst] > 0.0 else None


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
    return smallest_bound(badnesses, attainment) if badnesses else 0.0


def smallest_bound(values: Sequence[float], share: float) -> float:
    """The smallest bound that at least `share` of the values meet, which is one of them."""
    return sorted(values)[max(required_good(share, len(values)), 1) - 1]
