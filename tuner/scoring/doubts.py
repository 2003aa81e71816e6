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
from tuner.scoring.steady import SteadyState
from tuner.traffic.trace import RequestRecord

LAG_FLOOR, LAG_SHARE = 0.005, 0.01
"""A p99 send lag up to these seconds, or this share of the tightest TTFT bound, is never doubted."""
LAG_LIMIT_FLOOR, LAG_LIMIT_SHARE = 0.02, 0.2
"""Beyond these nothing is compared. Between the two the lag is noted: it is part of every latency, for these count
from the scheduled arrival, so it never flatters a configuration; a fifth of the bound may decide who meets it."""
LITTLE_TOLERANCE = 0.05
"""By how much L and lambda W may differ, as a share of L, besides what is carried over the ends of the replay."""
FEWEST_IN_FLIGHT = 1.0
MOST = 0.5
"""Share of the long answers from which on what is wrong with them is wrong with the measurement."""
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
    answers = [*_collapsed_chunks(records), *_repeated_answers(records), *_claims(records)]
    found = [*_client_lag(metrics, slos), *answers, *_few_requests(metrics), *_failures(metrics)]
    found += _unsteady(metrics.steady) if stopped is None else ()
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
    tightest, lag = min(bounds, default=0.0), metrics.send_lag.get(99, 0.0)
    allowed, limit = max(LAG_FLOOR, LAG_SHARE * tightest), max(LAG_LIMIT_FLOOR, LAG_LIMIT_SHARE * tightest)
    if lag > allowed:
        detail = f"requests left {lag * 1e3:.1f} ms late at p99, {allowed * 1e3:.1f} ms go unnoticed"
        advice = "the load generator sent requests late: free a core for it"
        severity: Severity = "disqualifying" if lag > limit else "note"
        yield Doubt("client_lagged", detail, advice, severity)


def _collapsed_chunks(records: Sequence[RequestRecord]) -> Iterator[Doubt]:
    long = [r for r in records if finished(r) and r.output_tokens >= LONGER_THAN_A_CHUNK]
    collapsed = sum(r.token_times[0] == r.token_times[-1] for r in long)
    if collapsed:
        detail = f"{collapsed} of {len(long)} long answers arrived in one piece"
        advice = "long answers arrive in one piece, so TTFT, TPOT and ITL mean nothing: switch off a cache or a buffer"
        yield Doubt("chunks_collapsed", detail, advice, _severity(collapsed, long))


def _repeated_answers(records: Sequence[RequestRecord]) -> Iterator[Doubt]:
    """One answer to different prompts: from a cache, or from a model that looks at nothing."""
    long = [r for r in records if finished(r) and r.output_tokens >= LONGER_THAN_A_CHUNK and r.answer_digest]
    prompts: dict[int | None, set[int | None]] = {}
    for record in long:
        prompts.setdefault(record.answer_digest, set()).add(record.prompt_digest)
    repeated = sum(len(prompts[record.answer_digest]) > 1 for record in long)
    if repeated > len(long) * MOST:
        detail = f"{repeated} of {len(long)} long answers are those of another prompt, word for word"
        advice = "different prompts get the same answer: switch off the cache, or check the model"
        yield Doubt("answers_repeated", detail, advice, "disqualifying")


def _claims(records: Sequence[RequestRecord]) -> Iterator[Doubt]:
    answered = [r for r in records if finished(r)]
    false = sum(r.claimed_tokens not in (None, r.output_tokens) for r in answered)
    if false:
        detail = f"usage of {false} of {len(answered)} answers tells another number of tokens than was delivered"
        yield Doubt("usage_disagrees", detail, "usage does not tell what was delivered, which is what is counted")
    long = [r for r in answered if r.output_tokens >= LONGER_THAN_A_CHUNK]
    empty = sum(r.answer_digest is None and r.claimed_tokens is not None for r in long)
    if empty:
        detail = f"{empty} of {len(long)} long answers have tokens and no text"
        advice = "long answers have no text: the tokens that are counted are none that a user sees"
        yield Doubt("answers_without_text", detail, advice, _severity(empty, long))


def _severity(cases: int, long: Sequence[RequestRecord]) -> Severity:
    """A stray case informs; when it is most of them, latencies and rates are not those of generated text."""
    return "disqualifying" if cases > len(long) * MOST else "note"


def _unsteady(steady: SteadyState) -> Iterator[Doubt]:
    if not steady.stationary:
        detail = f"TTFT keeps rising or falling after the warm-up of {steady.start:.1f} s"
        yield Doubt("not_stationary", detail, "latencies drift: take a longer window, or less load than saturates")
    if steady.in_flight is None or steady.balance is None or steady.in_flight < FEWEST_IN_FLIGHT:
        return
    # Even a steady replay carries over its ends what stays about one stay long.
    allowed = LITTLE_TOLERANCE + steady.stay / steady.seconds
    off = steady.balance / steady.in_flight - 1
    if abs(off) > allowed:
        detail = f"{steady.in_flight:.1f} requests in flight, arrivals x stay make {steady.balance:.1f} ({off:+.0%})"
        advice = "Little's law fails, so the replay was not in balance: take a longer window, or less load"
        yield Doubt("littles_law", detail, advice)


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
