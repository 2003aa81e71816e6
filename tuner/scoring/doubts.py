"""Reasons to distrust a measurement, each with what to do about it. A doubt changes no score: it informs, or it
disqualifies the measurement, which then has none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tuner.scoring.intervals import CONFIDENCE
from tuner.scoring.metrics import TrafficMetrics
from tuner.scoring.slo import SLO, finished
from tuner.traffic.trace import RequestRecord

LAG_FLOOR = 0.005
"""Seconds of p99 send lag that are never doubted."""
LAG_SHARE = 0.01
"""Share of the tightest TTFT bound that the p99 send lag may reach."""
LONGER_THAN_A_CHUNK = 18
"""An answer of this many tokens cannot come out of one step: the engine speculates at most 16 tokens ahead."""


Severity = Literal["note", "disqualifying"]


@dataclass(frozen=True, slots=True)
class Doubt:
    """name: fixed, for tables. detail: what was seen, with its figures. advice: what is wrong and what would help, in
    the same words for every measurement, so that the text of a doubt groups the trials that it is about. severity:
    "note" informs; "disqualifying" says that the figures are not the configuration's, so nothing is compared with
    them."""

    name: str
    detail: str
    advice: str
    severity: Severity = "note"

    def __str__(self) -> str:
        return f"{self.name}: {self.advice}"


def doubts(
    records: Sequence[RequestRecord], metrics: TrafficMetrics, slos: Mapping[str, SLO], stopped: str | None = None
) -> tuple[Doubt, ...]:
    """All doubts about one replay. stopped: why the replay ended before its last arrival, or None."""
    found = [*_client_lag(metrics, slos), *_collapsed_chunks(records), *_few_requests(metrics), *_failures(metrics)]
    if stopped is not None:
        found.append(Doubt("stopped_early", stopped, "the rates are those of an unfinished replay"))
    return tuple(found)


def disqualifying(found: Iterable[Doubt]) -> Doubt | None:
    """The first doubt that disqualifies, if any does."""
    return next((doubt for doubt in found if doubt.severity == "disqualifying"), None)


def requests_needed(attainment: float) -> int:
    """Fewest requests that can prove the attainment at 95 % confidence when none misses: 29 for 0.9, 59 for 0.95.

    Source: MLPerf early stopping with no over-latency request, P(Binom(n, 1 - a) = 0) <= 0.05.
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(attainment))


def _client_lag(metrics: TrafficMetrics, slos: Mapping[str, SLO]) -> Iterator[Doubt]:
    bounds = [slo.ttft for slo in slos.values() if slo.ttft is not None]
    allowed = max(LAG_FLOOR, LAG_SHARE * min(bounds, default=0.0))
    lag = metrics.send_lag.get(99, 0.0)
    if lag > allowed:
        detail = f"requests left {lag * 1e3:.1f} ms late at p99, {allowed * 1e3:.1f} ms are allowed"
        advice = "the load generator sent requests late: free a core for it"
        yield Doubt("client_lagged", detail, advice, "disqualifying")


def _collapsed_chunks(records: Sequence[RequestRecord]) -> Iterator[Doubt]:
    long = [r for r in records if finished(r) and r.output_tokens >= LONGER_THAN_A_CHUNK]
    collapsed = sum(r.token_times[0] == r.token_times[-1] for r in long)
    if collapsed:
        detail = f"{collapsed} of {len(long)} long answers arrived in one piece"
        yield Doubt("chunks_collapsed", detail, "long answers arrive in one piece, so TTFT, TPOT and ITL mean nothing")


def _few_requests(metrics: TrafficMetrics) -> Iterator[Doubt]:
    for name, found in metrics.classes.items():
        needed = requests_needed(found.target)
        if found.offered < needed:
            detail = f"class {name} has {found.offered} requests"
            advice = f"class {name} needs {needed} requests to prove {found.target:g}: use a longer window"
            yield Doubt("too_few_requests", detail, advice)


def _failures(metrics: TrafficMetrics) -> Iterator[Doubt]:
    for name, found in metrics.classes.items():
        if found.errors:
            counts = ", ".join(f"{reason} {count}" for reason, count in sorted(found.errors.items()))
            detail = f"class {name}: {sum(found.errors.values())} of {found.offered} requests failed ({counts})"
            yield Doubt("requests_failed", detail, f"class {name} has failed requests, which no percentile includes")
