"""Latency and throughput of a replay, from raw records (formulas: docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One SLO class of one replay. Percentile tables: metric ("ttft", "tpot", "itl", "e2e") -> {50, 90, 95, 99: seconds},
    over finished requests; empty where nothing finished.

    offered: requests scheduled in the window, whatever became of them. good: those that met every bound of their SLO.
    attainment: good / offered with its Clopper-Pearson interval. target: the attainment the SLO asks for.
    violation: signed, <= 0 when the SLO holds (see slo.violation).
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


@dataclass(frozen=True, slots=True)
class TrafficMetrics:
    """A whole replay. Rates are per second of `duration` (the time over which arrivals were offered).

    goodput: good requests per second, with a 95 % interval. send_lag: percentiles {50, 95, 99: seconds} of
    sent - scheduled at the client.
    """

    duration: float
    offered_rate: float
    goodput: Interval
    output_tokens_per_second: float
    classes: Mapping[str, ClassMetrics]
    tenants: Mapping[str, ClassMetrics]
    send_lag: Mapping[int, float]
