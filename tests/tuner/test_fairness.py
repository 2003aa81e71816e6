"""Fairness on a server of one queue, where who waits for whom can be worked out, and Jain's index for any shares."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.tuner.builders import answered, failed
from tuner.cli.__main__ import app
from tuner.fairness import Fairness, measure_fairness
from tuner.scoring.fairness import jain, slowdowns
from tuner.scoring.slo import SLO
from tuner.serving.testbed import Load
from tuner.traffic.replay import Replay, Stop
from tuner.traffic.trace import Request, RequestRecord

shares = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20)


@given(shares)
def test_jain_lies_between_one_of_k_and_one(values: list[float]) -> None:
    assert 1 / len(values) - 1e-12 <= jain(values) <= 1 + 1e-12


@given(shares, st.floats(1e-6, 1e6), st.randoms(use_true_random=False))
def test_jain_depends_on_neither_scale_nor_order(values: list[float], factor: float, random: object) -> None:
    shuffled = sorted(values, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert jain([value * factor for value in shuffled]) == pytest.approx(jain(values), rel=1e-6)


@given(st.floats(0.01, 1.0), st.integers(1, 20), st.integers(0, 20))
def test_jain_of_equals_and_of_nothing_is_the_share_that_has_something(value: float, some: int, none: int) -> None:
    assert jain([value] * some + [0.0] * none) == pytest.approx(some / (some + none))


@given(shares, st.data())
def test_giving_from_the_richest_to_the_poorest_never_lowers_jain(values: list[float], data: st.DataObject) -> None:
    moved = data.draw(st.floats(0.0, (max(values) - min(values)) / 2))
    after = sorted(values)
    after[0], after[-1] = after[0] + moved, after[-1] - moved
    assert jain(after if len(values) > 1 else values) >= jain(values) - 1e-9


def test_slowdown_is_paired_and_a_lost_answer_is_infinitely_slow() -> None:
    alone = [answered(1.0, name="a"), answered(2.0, name="b"), failed(name="c"), answered(1.0, name="d")]
    shared = [answered(2.0, name="b"), answered(3.0, name="a"), answered(1.0, name="c"), failed(name="d")]
    assert slowdowns(shared, alone) == [1.0, 3.0, math.inf]


def one_queue(load: Load, stop: Stop | None) -> Replay:
    """Takes a prompt token a millisecond, one request after the other."""
    records: list[RequestRecord] = []
    free = 0.0
    for request in load.requests:
        due = request.arrival / load.time_scale
        assert request.prompt_tokens is not None
        free = max(free, due) + request.prompt_tokens / 1000
        records.append(RequestRecord(
            request.id, request.tenant, request.slo_class, due, due, (free,), request.prompt_tokens, 1, 1, "length",
        ))  # fmt: skip
    return Replay(tuple(records), None, load.duration)


def _request(name: str, arrival: float, tenant: str, tokens: int) -> Request:
    return Request(name, arrival, tenant, "chat", "x", 1, prompt_tokens=tokens, output_tokens=1)


def _measure(long_tokens: int) -> tuple[Fairness, list[str]]:
    """small asks each second for 10 ms of work; big, every tenth second and just before it, for long_tokens ms."""
    small = [_request(f"s{i}", i + 0.1, "small", 10) for i in range(100)]
    big = [_request(f"b{i}", 10.0 * i, "big", long_tokens) for i in range(10)]
    requests = tuple(sorted([*small, *big], key=lambda request: request.arrival))
    steps: list[str] = []
    load = Load(requests, 100.0, "all", 1.0, 10.0)
    slos = {"chat": SLO(ttft=0.35, attainment=0.9)}
    return measure_fairness(load, slos, one_queue, on_replay=steps.append), steps


def test_long_prompts_slow_those_behind_them_and_taking_them_out_shows_it() -> None:
    found, steps = _measure(310)
    assert found.head_of_line is not None
    line = found.head_of_line
    assert (line.long_prompt_tokens, line.long, line.behind) == (40, 10, 10)
    # The long one came 0.1 s earlier, so 0.21 s of it are left.
    assert (line.ttft, line.ttft_without) == (pytest.approx(0.22), pytest.approx(0.01))
    assert line.ratio == pytest.approx(22) and not found.fair
    # Without the long prompts, small is alone: no fourth replay.
    assert steps == ["everybody", "big alone", "small alone"] and found.replays == 3


def test_each_tenant_against_itself_alone() -> None:
    big, small = _measure(310)[0].tenants
    assert (big.name, big.offered, big.attainment.value, big.alone) == ("big", 10, 1.0, 1.0)
    assert (big.slowdown, big.slowdown_p95) == (1.0, 1.0)
    assert (small.slowdown, small.slowdown_p95) == (pytest.approx(1.0), pytest.approx(22))


def test_a_tenant_that_nobody_else_hurts_may_fare_badly_for_its_own_load() -> None:
    found, _ = _measure(400)
    big, small = found.tenants
    assert (found.worst, big.attainment.value, big.alone, small.attainment.value) == ("big", 0.0, 0.0, 1.0)
    assert found.jain == pytest.approx(0.5)


def test_what_fails_without_the_long_prompts_too_does_not_wait_for_them() -> None:
    small = _request("s", 0.1, "small", 10)
    load = Load((_request("b", 0.0, "big", 400), small), 20.0, "all", 1.0, 10.0)

    def play(load: Load, stop: Stop | None) -> Replay:
        lost = failed(name="s", tenant="small", scheduled=0.1, prompt_tokens=10)
        records = tuple(lost if r.request_id == "s" else r for r in one_queue(load, stop).records)
        return Replay(records, None, load.duration)

    found = measure_fairness(load, {"chat": SLO(ttft=9.0)}, play, long_prompt_tokens=100)
    assert found.head_of_line is None and found.worst == "small"


def test_without_long_prompts_there_is_no_head_of_line() -> None:
    found, steps = _measure(20)
    assert found.head_of_line is None and found.fair and len(steps) == 3


def test_the_command_measures_a_running_server(server: tuple[str, Path]) -> None:
    url, trace = server
    options = ["fairness", str(trace), "--url", url, "--window", "0:1", "--time-scale", "2", "--slo", "chat.ttft=600"]
    shown = CliRunner().invoke(app, options)
    assert shown.exit_code == 0, shown.stderr
    assert "Jain index of attainment 1.000 (fair); worst tenant acme" in shown.stdout
    assert "no short request stands behind a long one" in shown.stdout
    found = json.loads(CliRunner().invoke(app, [*options, "--json"]).stdout)
    assert (found["fair"], found["replays"], found["tenants"][0]["offered"]) == (True, 1, 10)
