"""When a replay is hopeless, and how far from its SLO a stopped one counts for the sampler."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes import cases, make_trace
from tuner.early_stop import (
    OVER_SATURATED,
    SLO_IMPLAUSIBLE,
    SLO_UNREACHABLE,
    good_until,
    hopeless,
    over_saturated,
    slo_implausible,
    slo_unreachable,
)
from tuner.outcome import WORST, graded
from tuner.scoring.metrics import ClassMetrics, Interval
from tuner.scoring.slo import BADNESS_CAP, SLO
from tuner.traffic.replay import Progress, Stop
from tuner.traffic.trace import Request, RequestRecord

REQUESTS = make_trace().window(0, 1).requests
SLOS = {"chat": SLO(ttft=0.4, tpot=0.05, attainment=0.8)}


def ended(index: int, ttft: float) -> RequestRecord:
    due = REQUESTS[index].arrival
    times = tuple(due + ttft + 0.001 * i for i in range(4))
    return RequestRecord(f"r{index}", "acme", "chat", due, due, times, 2, 4, 4, "length")


STOPS = [
    ("nothing ended yet", 0.3, [], 4, None),
    ("half are bad: one too few", 0.6, [9.0] * 5, 7, None),
    ("more than half are bad", 0.6, [9.0] * 6, 7, SLO_UNREACHABLE),
    ("bad ones among good ones", 0.9, [0.1, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0], 9, SLO_UNREACHABLE),
    ("all good", 0.9, [0.1] * 9, 9, None),
    ("none ended and all too late to be good", 1.2, [], 9, SLO_UNREACHABLE),
    ("hopeless, but everything was sent", 1.2, [9.0] * 9, 10, None),
]


@pytest.mark.parametrize(("elapsed", "ttfts", "offered", "expected"), cases(STOPS))
def test_hopeless_means_that_no_continuation_helps(
    elapsed: float, ttfts: list[float], offered: int, expected: str | None
) -> None:
    stop = slo_unreachable(REQUESTS, SLOS, time_scale=1.0)
    records = [ended(i, ttft) for i, ttft in enumerate(ttfts)]
    assert stop(Progress(elapsed, offered, len(REQUESTS), records)) == expected


def test_it_counts_each_record_once() -> None:
    stop = slo_unreachable(REQUESTS, SLOS, time_scale=1.0)
    records = [ended(i, 9.0) for i in range(5)]
    for _ in range(5):
        assert stop(Progress(0.6, 7, 10, records)) is None


def test_a_later_turn_is_not_late_before_its_turn() -> None:
    session = tuple(replace(request, session="s") for request in REQUESTS)
    stop = slo_unreachable(session, SLOS, time_scale=1.0)
    assert stop(Progress(60.0, 1, len(session), [])) is None
    assert stop(Progress(60.0, 7, len(session), [ended(i, 9.0) for i in range(6)])) == SLO_UNREACHABLE


DEADLINES = [
    ("first token and pace", SLO(ttft=0.4, tpot=0.05), 0.4 + 3 * 0.05),
    ("the tighter pace", SLO(ttft=0.4, tpot=0.05, itl=0.02), 0.4 + 3 * 0.02),
    ("a tail that lets one gap be long", SLO(ttft=0.4, itl=0.02, itl_quantile=0.9), math.inf),
    ("a first token by its prompt", SLO(ttft=0.4, tpot=0.05, ttft_per_1k_prompt_tokens=50.0), 0.5 + 3 * 0.05),
    ("the whole answer", SLO(e2e=0.3), 0.3),
    ("the tighter of both", SLO(ttft=0.4, tpot=0.05, e2e=0.5), 0.5),
    ("a first token alone says nothing", SLO(ttft=0.4), math.inf),
]


@pytest.mark.parametrize(("slo", "seconds"), cases(DEADLINES))
def test_until_when_an_open_request_may_be_good(slo: SLO, seconds: float) -> None:
    assert good_until(REQUESTS[0], slo) == pytest.approx(seconds)


def found(violation: float, good: int, not_sent: int = 0) -> ClassMetrics:
    errors: Counter[str] = Counter({"not_sent": not_sent} if not_sent else {})
    share = Interval(good / 100, 0.0, 1.0)
    return ClassMetrics("chat", 100, 100, good, errors, share, 0.9, violation, {})


GRADES: list[Any] = [
    ("feasible: untouched", found(-0.4, 99), -0.4),
    ("a near miss", found(0.1, 88), 0.12),
    ("at the cap, many good", found(BADNESS_CAP, 60), BADNESS_CAP + 0.3),
    ("at the cap, none good", found(BADNESS_CAP, 0), BADNESS_CAP + 0.9),
    ("what was never sent does not count", found(BADNESS_CAP, 30, not_sent=50), BADNESS_CAP + 0.3),
]


@pytest.mark.parametrize(("metrics", "expected"), cases(GRADES))
def test_overloaded_configurations_are_told_apart(metrics: ClassMetrics, expected: float) -> None:
    assert graded(metrics) == pytest.approx(expected)
    assert graded(metrics) <= WORST


def traffic(count: int = 200, rate: float = 10.0) -> tuple[Request, ...]:
    return tuple(Request(f"r{i}", i / rate, "t", "chat", "p", 2, output_tokens=2) for i in range(count))


def play(stop: Stop, requests: tuple[Request, ...], ttft: Callable[[int], float]) -> tuple[float, str] | None:
    """When and why a replay was stopped whose i-th request gets its two tokens ttft(i) s after its arrival."""
    records = []
    for i, r in enumerate(requests):
        first = r.arrival + ttft(i)
        times = (first, first + 0.01)
        records.append(RequestRecord(r.id, "t", "chat", r.arrival, r.arrival, times, 1, 2, 2, "length"))
    ended = sorted(records, key=lambda record: record.token_times[-1])
    for tick in range(1, round(requests[-1].arrival / 0.25)):
        now = tick * 0.25
        done = [record for record in ended if record.token_times[-1] <= now]
        sent = sum(request.arrival <= now for request in requests)
        if (reason := stop(Progress(now, sent, len(requests), done))) is not None:
            return now, reason
    return None


PLAYS: list[Any] = [
    # the case, seconds to the first token of request i, the reason to stop
    ("well", lambda i: 0.1, None),
    ("a tenth is late: near its target", lambda i: 1.0 if i % 10 == 0 else 0.1, None),
    ("nearly all late: implausible", lambda i: 0.1 if i % 10 == 0 else 1.0, SLO_IMPLAUSIBLE),
    ("a burst of thirty late ones", lambda i: 1.0 if 60 <= i < 90 else 0.1, None),
    ("slower and slower", lambda i: 0.02 * i, OVER_SATURATED),
]


@pytest.mark.parametrize(("ttft", "expected"), cases(PLAYS))
def test_a_hopeless_replay_ends_before_its_time(ttft: Callable[[int], float], expected: str | None) -> None:
    requests = traffic()
    # Too lenient a bound for the share of good ones to tell anything in time, where only growth is to be seen.
    slos = {"chat": SLO(ttft=1.5 if expected == OVER_SATURATED else 0.4, attainment=0.9)}
    stopped = play(hopeless(requests, slos, 1.0), requests, ttft)
    assert (None if stopped is None else stopped[1].partition(":")[0]) == expected
    if stopped is not None:
        assert stopped[0] < 16.0


def test_growth_is_no_reason_while_its_end_is_in_sight() -> None:
    """The first half of the trace comes at once; what is left is little, and the server will catch up."""
    early = traffic(200, rate=20.0)
    rest = tuple(replace(r, id=f"late{i}", arrival=10.0 + 2 * i) for i, r in enumerate(early[:6]))
    stop = over_saturated((*early, *rest), {"chat": SLO(ttft=1.5, attainment=0.9)}, 1.0)
    assert play(stop, (*early, *rest), lambda i: 0.02 * i) is None


def test_the_order_of_answers_does_not_bias_the_share() -> None:
    """Late answers end first; those ahead of them are still open."""
    requests = traffic()
    stop = slo_implausible(requests, {"chat": SLO(e2e=60.0, attainment=0.9)}, 1.0)
    bad = [ended_at(requests[i], requests[i].arrival + 0.1, "http_5xx") for i in range(1, 80)]
    assert stop(Progress(9.0, 90, 200, bad)) is None
    assert stop(Progress(9.0, 90, 200, [*bad, ended_at(requests[0], 8.9, None)])) is not None


def ended_at(request: Request, end: float, error: str | None) -> RequestRecord:
    return RequestRecord(request.id, "t", "chat", request.arrival, 0.0, (end,), 1, 1, 2, "length", error)
