"""Fairness of a server under recorded traffic: every tenant together, each one alone, and all without the long prompts.

The requests and their times are the same in each of these replays; only who else is there differs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tuner.capacity import Play
from tuner.scoring.doubts import Doubt, doubts
from tuner.scoring.fairness import HEAD_OF_LINE_GATE, JAIN_GATE, first_token_times, jain, slowdowns
from tuner.scoring.metrics import Interval, traffic_metrics
from tuner.scoring.slo import SLO, failure_reason, smallest_bound
from tuner.serving.testbed import Load
from tuner.traffic.trace import Request, RequestRecord

LONG_FACTOR = 4.0
"""A prompt of so many times the median length is a long one, where nothing else is said."""
BEHIND_SECONDS = 1.0
"""A short request that arrives within this time after a long one stands behind it."""
TAIL = 0.95


@dataclass(frozen=True, slots=True)
class TenantService:
    """attainment: share of the tenant's requests that were good with everybody's traffic; alone: without. slowdown,
    slowdown_p95: median and 95th percentile of E2E together / E2E alone."""

    name: str
    offered: int
    attainment: Interval
    alone: float
    slowdown: float
    slowdown_p95: float


@dataclass(frozen=True, slots=True)
class HeadOfLine:
    """p95 of the TTFT, in seconds, of the short requests that arrive within a second after a long one, and of the same
    requests when the long ones are taken out. long_prompt_tokens: from which length a prompt is long."""

    long_prompt_tokens: int
    long: int
    behind: int
    ttft: float
    ttft_without: float

    @property
    def ratio(self) -> float:
        """By what factor the long prompts slow the short ones behind them; infinite where those get no answer."""
        return self.ttft / self.ttft_without


@dataclass(frozen=True, slots=True)
class Fairness:
    """jain: index of the tenants' attainments. worst: tenant with the least. head_of_line: None without long prompts,
    or with nobody behind them. replays: how many it took."""

    jain: float
    worst: str
    tenants: tuple[TenantService, ...]
    head_of_line: HeadOfLine | None
    replays: int
    doubts: tuple[Doubt, ...]

    @property
    def fair(self) -> bool:
        """Within both gates."""
        line = self.head_of_line
        return self.jain >= JAIN_GATE and (line is None or line.ratio <= HEAD_OF_LINE_GATE)


def measure_fairness(
    load: Load,
    slos: Mapping[str, SLO],
    play: Play,
    *,
    long_prompt_tokens: int | None = None,
    on_replay: Callable[[str], None] = lambda what: None,
) -> Fairness:
    """Replay all of `load`, then each tenant of several alone, then everybody without the long prompts.

    long_prompt_tokens: from which length a prompt is long, default LONG_FACTOR times the median. play: replays a load,
    on the same server each time.
    """
    records, seen = {}, _Replays(load, play, on_replay)
    together = seen.of(load.requests, "everybody")
    names = sorted({request.tenant for request in load.requests})
    for name in names:
        records[name] = seen.of([r for r in load.requests if r.tenant == name], f"{name} alone")
    line = _head_of_line(load, together, long_prompt_tokens, seen)
    metrics = traffic_metrics(together, slos, load.duration)
    tenants = tuple(_service(name, metrics.tenants[name].attainment, together, records[name], slos) for name in names)
    return Fairness(
        jain=jain([tenant.attainment.value for tenant in tenants]),
        worst=min(tenants, key=lambda tenant: tenant.attainment.value).name,
        tenants=tenants,
        head_of_line=line,
        replays=seen.count,
        doubts=doubts(together, metrics, slos),
    )


class _Replays:
    """Each set of requests is replayed once: taking the long prompts out may leave one tenant alone."""

    def __init__(self, load: Load, play: Play, on_replay: Callable[[str], None]) -> None:
        self._load, self._play, self._on_replay = load, play, on_replay
        self._known: dict[tuple[str, ...], tuple[RequestRecord, ...]] = {}

    @property
    def count(self) -> int:
        return len(self._known)

    def of(self, requests: Sequence[Request], what: str) -> tuple[RequestRecord, ...]:
        key = tuple(request.id for request in requests)
        if key not in self._known:
            self._on_replay(what)
            self._known[key] = self._play(replace(self._load, requests=tuple(requests)), None).records
        return self._known[key]


def _service(
    name: str,
    attainment: Interval,
    together: Sequence[RequestRecord],
    alone: Sequence[RequestRecord],
    slos: Mapping[str, SLO],
) -> TenantService:
    ratios = slowdowns(together, alone)
    return TenantService(
        name=name,
        offered=len(alone),
        attainment=attainment,
        alone=traffic_metrics(alone, slos, 1.0).tenants[name].attainment.value,
        slowdown=smallest_bound(ratios, 0.5) if ratios else 1.0,
        slowdown_p95=smallest_bound(ratios, TAIL) if ratios else 1.0,
    )


def _head_of_line(
    load: Load, together: Sequence[RequestRecord], long_prompt_tokens: int | None, replays: _Replays
) -> HeadOfLine | None:
    lengths = {record.request_id: record.prompt_tokens or 0 for record in together}
    least = long_prompt_tokens or round(LONG_FACTOR * statistics.median(lengths.values()))
    long = {name for name, length in lengths.items() if length >= max(least, 1)}
    arrivals = [record.scheduled for record in together if record.request_id in long]
    behind = {
        record.request_id
        for record in together
        if record.request_id not in long and any(0 <= record.scheduled - at <= BEHIND_SECONDS for at in arrivals)
    }
    if not behind:
        return None
    without = replays.of([r for r in load.requests if r.id not in long], f"without prompts of {least} tokens and more")
    # Like a slowdown, of those that were answered without: what fails anyway does not wait for long prompts.
    behind &= {record.request_id for record in without if failure_reason(record) is None}
    if not behind:
        return None
    before, after = (first_token_times(r for r in records if r.request_id in behind) for records in (together, without))
    return HeadOfLine(least, len(long), len(behind), smallest_bound(before, TAIL), smallest_bound(after, TAIL))
