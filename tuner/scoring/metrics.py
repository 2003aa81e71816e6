"""Latency and throughput of a replay, from raw records (formulas: docs/metrics.md)."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tuner.scoring.fluidity import FLUID_SHARE, smallest_token_gap
from tuner.scoring.intervals import effective_size, proportion_interval, proportion_lower
from tuner.scoring.slo import (
    LATENCIES,
    SLO,
    attainment_violation,
    badness,
    failure_reason,
    finished,
    latencies,
    required_good,
    token_gaps,
)
from tuner.scoring.steady import SteadyState, steady_state
from tuner.traffic.trace import RequestRecord

PERCENTILES = (50, 90, 95, 99)
SEND_LAG_PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One SLO class of one replay.

    percentiles: metric ("ttft", "tpot", "itl", "e2e") -> {50, 90, 95, 99: seconds}, over finished requests; empty
    where nothing finished. errors: why requests are bad whatever their latency (see failure_reason) -> how many.

    offered: requests scheduled in the window, whatever became of them. good: those that met every bound of their SLO.
    attainment: good / offered with its Clopper-Pearson interval on the effective sample size. target: the attainment
    the SLO asks for. violation: signed, <= 0 when the SLO holds (see slo.violation).

    effective: requests that would tell as much if they were independent of each other. lower: one-sided 95 % bound of
    the attainment, on as many; the SLO is proven where it reaches the target. fluid_token_rate: tokens per second at
    which 99 % of the offered requests deliver 90 % of their tokens in time after the first; None where unknown.
    """

    name: str
    offered: int
    finished: int
    good: int
    errors: Mapping[str, int]
    attainment: Interval
    target: float
    violation: float
    percentiles: Mapping[str, Mapping[int, float]]
    effective: float = 0.0
    lower: float = 0.0
    fluid_token_rate: float | None = None


@dataclass(frozen=True, slots=True)
class TrafficMetrics:
    """A whole replay. Rates are per second of `duration` (the time over which arrivals were offered).

    goodput: good requests per second, with a 95 % interval. send_lag: percentiles {50, 95, 99: seconds} of
    sent - scheduled at the client. steady: the warm-up, which the percentiles of classes and tenants leave out.
    """

    duration: float
    offered_rate: float
    goodput: Interval
    output_tokens_per_second: float
    classes: Mapping[str, ClassMetrics]
    tenants: Mapping[str, ClassMetrics]
    send_lag: Mapping[int, float]
    steady: SteadyState = SteadyState()


def traffic_metrics(records: Sequence[RequestRecord], slos: Mapping[str, SLO], duration: float) -> TrafficMetrics:
    """Score one replay. duration: seconds over which its arrivals were offered.

    Every record is an offered request, whatever became of it. Raises ValueError when a request's SLO class has no SLO.
    """
    assert duration > 0, f"duration {duration}"
    judged = [_judge(record, slos) for record in records]
    good = sum(one.good for one in judged)
    low, high = proportion_interval(good, len(judged))
    steady = steady_state(records)
    return TrafficMetrics(
        duration=duration,
        offered_rate=len(judged) / duration,
        # The offered requests are the same in every trial, so the share that is good is what is uncertain.
        goodput=Interval(good / duration, low * len(judged) / duration, high * len(judged) / duration),
        output_tokens_per_second=sum(asked_tokens(record) for record in records) / duration,
        classes={
            name: _group(name, [j for j in judged if j.record.slo_class == name], slos, steady) for name in sorted(slos)
        },
        tenants={
            name: _group(name, [j for j in judged if j.record.tenant == name], slos, steady)
            for name in sorted({record.tenant for record in records})
        },
        send_lag=percentiles([r.sent - r.scheduled for r in records if r.sent is not None], SEND_LAG_PERCENTILES),
        steady=steady,
    )


def asked_tokens(record: RequestRecord) -> int:
    """Output tokens, of an answer longer than the replay asked for only those asked for."""
    asked = record.expected_tokens
    return record.output_tokens if asked is None else min(record.output_tokens, asked)


def percentiles(values: Sequence[float], ranks: Sequence[int] = PERCENTILES) -> dict[int, float]:
    """Order statistics (the next larger observation, never an interpolated one); empty when there are no values."""
    if not values:
        return {}
    return dict(zip(ranks, np.percentile(values, ranks, method="higher").tolist(), strict=True))


def tail_latency(records: Sequence[RequestRecord], metric: str, percentile: float, worst: float) -> float:
    """A percentile of one latency over the OFFERED requests, in seconds.

    worst: what a bad request counts as (the replay's length with its drain time), so that dropping a slow request
    never improves the tail. Requests for which the metric is undefined (tpot of one token) are left out.
    """
    values = [
        worst if failure_reason(record) is not None else min(latencies(record).get(metric, math.nan), worst)
        for record in records
    ]
    defined = [value for value in values if not math.isnan(value)]
    return float(np.percentile(defined, percentile, method="higher")) if defined else worst


class _Judged(NamedTuple):
    record: RequestRecord
    badness: float
    target: float

    @property
    def good(self) -> bool:
        return self.badness <= 0.0


def _judge(record: RequestRecord, slos: Mapping[str, SLO]) -> _Judged:
    slo = slos.get(record.slo_class)
    if slo is None:
        known = ", ".join(sorted(slos))
        raise ValueError(f"request {record.request_id}: SLO class {record.slo_class!r} is not among slos: {known}")
    return _Judged(record, badness(record, slo), slo.attainment)


def _group(name: str, judged: Sequence[_Judged], slos: Mapping[str, SLO], steady: SteadyState) -> ClassMetrics:
    """Metrics of a class or of a tenant; a tenant with several classes is held to the strictest attainment of them."""
    good = sum(one.good for one in judged)
    target = max((one.target for one in judged), default=slos[name].attainment if name in slos else 0.0)
    violation = attainment_violation([one.badness for one in judged], target)
    effective = _effective(judged, violation)
    share = good / len(judged) if judged else 1.0
    return ClassMetrics(
        name=name,
        offered=len(judged),
        finished=sum(finished(one.record) for one in judged),
        good=good,
        errors=Counter(reason for one in judged if (reason := failure_reason(one.record)) is not None),
        attainment=Interval(share, *proportion_interval(share * effective, effective)),
        target=target,
        violation=violation,
        percentiles=_latency_table(
            [one.record for one in judged if finished(one.record) and one.record.scheduled >= steady.start]
        ),
        effective=effective,
        lower=proportion_lower(share * effective, effective),
        fluid_token_rate=fluid_token_rate([one.record for one in judged]),
    )


def _effective(judged: Sequence[_Judged], violation: float) -> float:
    """Of the goods in the order of arrival. Where fewer are bad than may be, of the worst that the SLO does not need:
    a class without a bad request shows no correlation, and is not independent for that."""
    threshold = min(violation, 0.0)
    ordered = sorted(judged, key=lambda one: (one.record.scheduled, one.record.request_id, one.badness))
    return effective_size([one.badness > threshold for one in ordered])


def fluid_token_rate(records: Sequence[RequestRecord]) -> float | None:
    """Tokens per second, once the first token is there, at which FLUID_SHARE of the offered requests flow.

    0 where more than the others are bad whatever their latency. None where no rate is too fast (answers of one chunk),
    and where nothing was offered. Source: Etalon's fluid token generation rate (arXiv 2407.07000).
    """
    if not records:
        return None
    paced = [(math.inf,) if failure_reason(record) is not None else (0.0, *token_gaps(record)) for record in records]
    counted = len(paced) - max(required_good(FLUID_SHARE, len(paced)), 1) + 1
    worst: list[float] = []  # a heap of the `counted` largest
    # None is above the widest gap of its answer, so that most answers need not be looked at.
    for gaps in sorted(paced, key=lambda gaps: max(gaps), reverse=True):
        if len(worst) == counted and max(gaps) <= worst[0]:
            break
        heapq.heappush(worst, math.inf if gaps[0] else smallest_token_gap(gaps))
        if len(worst) > counted:
            heapq.heappop(worst)
    return 1 / worst[0] if worst[0] > 0 else None


def _latency_table(answered: Sequence[RequestRecord]) -> dict[str, dict[int, float]]:
    """ttft, tpot, e2e: one value a request. itl: one value a gap, so that a stall in a long answer shows."""
    per_request = [latencies(record) for record in answered]
    values = {name: [row[name] for row in per_request if name in row] for name in ("ttft", "tpot", "e2e")}
    values["itl"] = [gap for record in answered for gap in token_gaps(record)]
    return {name: percentiles(values[name]) for name in LATENCIES if values[name]}
