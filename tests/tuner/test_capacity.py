"""Capacity on servers in closed form whose capacity is known, and the threshold search on noise of known size."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr
from typer.testing import CliRunner

from tests.fakes import cases, make_trace
from tests.tuner.builders import failed
from tuner.capacity import Capacity, Play, find_capacity
from tuner.cli.__main__ import app
from tuner.errors import Doubtful
from tuner.scoring.slo import SLO
from tuner.serving.testbed import Load
from tuner.threshold import Estimate, Threshold
from tuner.traffic.replay import Progress, Replay, Stop
from tuner.traffic.trace import Request, RequestRecord

TRACE = make_trace()
LOAD = Load(TRACE.requests, TRACE.span, "all", 1.0, 2.0)
SLOS = {"chat": SLO(ttft=0.5, attainment=0.9)}


def one_queue(service: Callable[[], float]) -> Play:
    """A server that takes service() seconds a request, one at a time, and is asked every second whether to stop."""

    def play(load: Load, stop: Stop | None) -> Replay:
        records, free = [], 0.0
        for request in load.requests:
            due = request.arrival / load.time_scale
            free = max(free, due) + service()
            records.append(_answer(request, due, free))
        for now in range(1, math.ceil(load.duration)):
            ended = [record for record in records if record.token_times[-1] <= now]
            offered = sum(record.scheduled <= now for record in records)
            if stop is not None and (reason := stop(Progress(now, offered, len(records), ended))) is not None:
                return Replay(tuple(_cut(record, now) for record in records), reason, float(now))
        return Replay(tuple(records), None, load.duration)

    return play


def _answer(request: Request, due: float, at: float) -> RequestRecord:
    return RequestRecord(request.id, request.tenant, request.slo_class, due, due, (at,) * 4, 2, 4, 4, "length")


def _cut(record: RequestRecord, now: float) -> RequestRecord:
    if record.token_times[-1] <= now:
        return record
    sent = record.scheduled if record.scheduled <= now else None
    return replace(failed("not_sent" if sent is None else "stopped"), sent=sent, scheduled=record.scheduled)


def _search(seconds: float) -> Capacity:
    return find_capacity(LOAD, SLOS, one_queue(lambda: seconds), precision=0.05, replays=30)


@pytest.mark.parametrize("seconds", [0.02, 0.05, 0.3])
def test_the_capacity_of_a_server_without_noise(seconds: float) -> None:
    """Ten arrivals a second at scale 1, so waiting grows by 0.1/x - service each; nine of ten may wait 0.5 s in all."""
    found = _search(seconds)
    # The 72nd of 80 requests waits 72 services - 71 gaps of 0.1 / x, and must have its token in 0.5 s.
    capacity = 71 * 0.1 / (72 * seconds - 0.5) if 72 * seconds > 0.5 else math.inf
    assert found.state == "found" and found.low <= capacity <= found.high <= 1.05 * found.low
    assert found.recorded_rate == 10.0
    assert next(iter(found.broke)) == "chat.ttft"


def test_hopeless_replays_end_early_and_no_request_is_counted_that_was_not_sent() -> None:
    found = _search(0.3)
    assert not found.tried[0].holds and found.tried[0].requests < 60
    assert {one.requests for one in found.tried if one.holds} == {80}
    assert found.requests == sum(one.requests for one in found.tried)


def test_the_same_requests_each_time_only_closer_together() -> None:
    loads: list[Load] = []

    def play(load: Load, stop: Stop | None) -> Replay:
        loads.append(load)
        return one_queue(lambda: 0.05)(load, None)

    find_capacity(LOAD, SLOS, play, replays=5)
    assert len({load.time_scale for load in loads}) == len(loads) == 5
    assert all((load.requests, load.span, load.drain_timeout) == (LOAD.requests, LOAD.span, 2.0) for load in loads)


ENDS = [
    ("a server that is never busy", 0.0, "above", 1024.0, None),
    ("a server that is always late", 99.0, "below", None, 1 / 64),
]


@pytest.mark.parametrize(("seconds", "state", "least", "most"), cases(ENDS))
def test_a_search_without_an_end_says_so(seconds: float, state: str, least: float | None, most: float | None) -> None:
    found = _search(seconds)
    assert found.state == state
    assert (found.time_scale >= least / 4) if least is not None else (found.time_scale <= (most or 0) * 4)
    assert found.high == math.inf if state == "above" else found.low == 0.0


def test_a_capacity_that_was_measured_in_a_burst_is_doubted() -> None:
    assert [doubt.name for doubt in _search(0.02).doubts] == ["burst"]
    assert _search(0.3).doubts == ()


def _searched(truth: float, noise: float, trials: int, rng: np.random.Generator) -> Estimate:
    """Doubled or halved from 1 until both answers came, then as the search would have it."""
    threshold, level, answers = Threshold(1 / 64, 1024), 1.0, set[bool]()
    for _ in range(trials):
        yes = bool(rng.random() < ndtr(math.log(truth / level) / noise))
        answers.add(yes)
        threshold.add(level, yes)
        level = threshold.next_level() if len(answers) == 2 else level * 2 if yes else level / 2
    return threshold.estimate()


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_the_interval_holds_the_threshold_as_often_as_it_says(noise: float) -> None:
    rng = np.random.default_rng(3)
    truths = np.exp(rng.uniform(math.log(0.5), math.log(20), 60)).tolist()
    found = [_searched(truth, noise, 14, rng) for truth in truths]
    covered = sum(one.low <= truth <= one.high for one, truth in zip(found, truths, strict=True))
    # 95 of 100 by construction; 52 of 60 or fewer has a chance of 2 in 1,000 then.
    assert covered > 52
    assert float(np.median([one.width for one in found])) < 0.4
    assert float(np.median([abs(math.log(o.value / t)) for o, t in zip(found, truths, strict=True)])) < 0.07


@pytest.mark.usefixtures("any_lag")
def test_the_command_finds_a_capacity(server: tuple[str, Path]) -> None:
    url, trace = server
    options = ["--url", url, "--window", "0:2", "--slo", "chat.ttft=0.015", "--replays", "3"]
    shown = CliRunner().invoke(app, ["capacity", str(trace), *options])
    assert shown.exit_code == 0, shown.stderr
    # The first token takes 20 ms at any rate.
    assert "capacity below" in shown.stdout and "broke first: chat.ttft (" in shown.stdout
    assert "3 replays" in shown.stdout
    found = json.loads(CliRunner().invoke(app, ["capacity", str(trace), *options, "--json"]).stdout)
    assert (found["state"], found["low"], len(found["tried"])) == ("below", 0.0, 3)


@pytest.mark.parametrize("lagging", [1, 2])
def test_a_replay_whose_client_lagged_is_made_again(lagging: int) -> None:
    steady = one_queue(lambda: 0.05)
    replays = 0

    def play(load: Load, stop: Stop | None) -> Replay:
        nonlocal replays
        replays += 1
        done = steady(load, stop)
        late = tuple(replace(record, sent=record.scheduled + 0.3) for record in done.records)
        return Replay(late, None, done.duration) if replays <= lagging else done

    found = find_capacity(LOAD, SLOS, play, precision=0.2)
    assert len(found.tried) == replays - lagging
    assert "client_lagged" in {doubt.name for doubt in found.doubts}


def test_a_client_that_always_lags_measures_no_capacity() -> None:
    steady = one_queue(lambda: 0.01)

    def play(load: Load, stop: Stop | None) -> Replay:
        done = steady(load, None)
        late = tuple(replace(r, sent=r.scheduled + 0.3) for r in done.records)
        return Replay(late, None, done.duration)

    with pytest.raises(Doubtful, match="x1: client_lagged: .*"):
        find_capacity(LOAD, SLOS, play)
