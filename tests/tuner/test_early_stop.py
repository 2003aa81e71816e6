"""When a replay is hopeless, and how far from its SLO a stopped one counts for the sampler."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes import cases, make_trace
from tuner.early_stop import SLO_UNREACHABLE, good_until, slo_unreachable
from tuner.outcome import WORST, graded
from tuner.scoring.metrics import ClassMetrics, Interval
from tuner.scoring.slo import BADNESS_CAP, SLO
from tuner.traffic.replay import Progress
from tuner.traffic.trace import RequestRecord

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
