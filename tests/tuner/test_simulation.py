"""Simulated replays read as real ones, calibrated to them, and the load that a configuration holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import checkpoint

from engine.profile import Profile
from engine.step_model import StepModel
from tuner import ladder
from tuner.early_stop import hopeless
from tuner.prediction import calibrated, capacity, misses
from tuner.scoring.metrics import traffic_metrics
from tuner.scoring.slo import SLO
from tuner.serving.config import ServingConfig
from tuner.serving.testbed import Load
from tuner.simulation import Simulator, prompt_tokens
from tuner.traffic.trace import Request

MINI = Path(__file__).parents[2] / "engine" / "mini" / "mini"
SLOS = {"chat": SLO(ttft=1.0, tpot=0.5, attainment=0.9)}


def request(name: str, at: float, prompt: int = 8, output: int | None = 4, **more: Any) -> Request:
    return Request(name, at, "t", "chat", tuple(range(3, 3 + prompt)), 16, output_tokens=output, **more)


def load(requests: list[Request], time_scale: float = 1.0, drain: float = 10.0) -> Load:
    return Load(tuple(requests), requests[-1].arrival + 1.0, "tune", time_scale, drain)


def simulator(requests: list[Request], *coefficients: float) -> Simulator:
    """Seconds of a step, of a row."""
    model = StepModel((*coefficients, *[0.0] * (9 - len(coefficients))))
    profile = Profile("float32", {"model/auto/auto": model}, ingress=0.0, egress=0.0)
    return Simulator(profile, {r.id: tuple(t for t in r.prompt if isinstance(t, int)) for r in requests})


@pytest.fixture
def serving(tmp_path: Path) -> Callable[..., ServingConfig]:
    model = str(checkpoint(tmp_path / "model"))
    return lambda **knobs: ServingConfig("bundled", {"model": model}, knobs)


def test_records_are_those_of_a_replay(serving: Callable[..., ServingConfig]) -> None:
    requests = [request("a", 0.0), request("b", 4.0, output=None)]
    replay = simulator(requests, 0.25).replay(serving(), load(requests, time_scale=2.0))
    a, b = replay.records
    assert (a.scheduled, a.sent, a.token_times) == (0.0, 0.0, (0.25, 0.5, 0.75, 1.0))
    assert (a.output_tokens, a.expected_tokens, a.finish_reason, a.error) == (4, 4, "length", None)
    # Half the recorded time; without a recorded length the answer has all that it may have.
    assert (b.scheduled, len(b.token_times), b.expected_tokens) == (2.0, 16, None)
    assert replay.duration == 2.5 and replay.stopped is None and replay.steps == 20
    scored = traffic_metrics(replay.records, SLOS, replay.duration)
    assert scored.goodput.value == 2 / 2.5 and scored.classes["chat"].percentiles["ttft"][50] == 0.25


def test_what_has_not_ended_by_the_drain_deadline_is_bad(serving: Callable[..., ServingConfig]) -> None:
    requests = [request("a", 0.0, output=30)]
    (record,) = simulator(requests, 1.0).replay(serving(), load(requests, drain=3.5)).records
    assert (record.error, record.output_tokens, record.finish_reason) == ("timeout", 3, None)


def test_what_the_engine_would_refuse_is_bad(serving: Callable[..., ServingConfig]) -> None:
    requests = [request("a", 0.0, prompt=100)]
    (record,) = simulator(requests, 1.0).replay(serving(kv_cache_memory_bytes=16 * 128 * 3), load(requests)).records
    assert (record.error, record.token_times) == ("http_4xx", ())


def test_turns_of_a_session_wait_for_each_other(serving: Callable[..., ServingConfig]) -> None:
    requests = [
        request("a", 0.0, session="s"),
        request("b", 1.0, session="s", think_time=3.0),
        request("c", 2.0, session="s"),
        request("d", 50.0, session="s"),
    ]
    replay = simulator(requests, 1.0).replay(serving(), load(requests, time_scale=2.0))
    # a ends at 4; b thinks for 3 / 2 s and ends at 9.5; c was due before that, d at 50 / 2 s.
    assert [record.scheduled for record in replay.records] == [0.0, 5.5, 9.5, 25.0]
    assert replay.duration == 25.5


def test_after_a_turn_that_failed_the_others_are_not_sent(serving: Callable[..., ServingConfig]) -> None:
    requests = [request("a", 0.0, prompt=100, session="s"), request("b", 1.0, session="s")]
    config = serving(kv_cache_memory_bytes=16 * 128 * 3)
    assert [r.error for r in simulator(requests, 1.0).replay(config, load(requests)).records] == [
        "http_4xx",
        "not_sent",
    ]


def test_a_hopeless_replay_stops_as_a_real_one_does(serving: Callable[..., ServingConfig]) -> None:
    requests = [request(f"r{i}", 0.25 * i) for i in range(60)]
    offered = load(requests)
    stop = hopeless(offered.requests, SLOS, 1.0)
    slow = simulator(requests, 2.0)
    stopped, whole = slow.replay(serving(), offered, stop), slow.replay(serving(), offered)
    assert stopped.stopped is not None and stopped.steps < whole.steps and stopped.seconds <= 10
    assert {record.error for record in stopped.records} >= {"stopped", "not_sent"}
    quick = simulator(requests, 0.01)
    assert quick.replay(serving(), offered, stop=hopeless(offered.requests, SLOS, 1.0)) == quick.replay(
        serving(), offered
    )


def test_prompts_are_the_engines_tokens() -> None:
    chat = Request("c", 0.0, "t", "chat", ({"role": "user", "content": "Why do people enjoy chess?"},), 4, "chat")
    found = prompt_tokens([chat, request("ids", 0.0, prompt=3), Request("x", 0.0, "t", "chat", "chess", 4)], MINI)
    assert found["ids"] == (3, 4, 5) and len(found["c"]) > len(found["x"]) > 0


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7, 4.0])
def test_calibration_finds_a_planted_slowdown(serving: Callable[..., ServingConfig], factor: float) -> None:
    requests = [request(f"r{i}", 0.3 * i, prompt=8 + 5 * (i % 7), output=3 + i % 5) for i in range(40)]
    offered, ours = load(requests), simulator(requests, 0.05, 0.001)
    measured = ours.slower(factor).replay(serving(), offered).records
    assert calibrated(ours, [(serving(), offered, measured)]) == pytest.approx(factor, rel=0.03)


def test_calibration_without_answers_changes_nothing(serving: Callable[..., ServingConfig]) -> None:
    requests = [request("a", 0.0, output=9)]
    offered, ours = load(requests, drain=1.0), simulator(requests, 1.0)
    assert calibrated(ours, [(serving(), offered, ours.replay(serving(), offered).records)]) == 1.0


def test_capacity_lies_between_the_rung_that_holds_and_the_one_that_misses(
    serving: Callable[..., ServingConfig],
) -> None:
    requests = [request(f"r{i}", 0.5 * i) for i in range(80)]
    ours, config = simulator(requests, 0.1, 0.01), serving(max_num_seqs=4)

    def at(scale: float) -> Load:
        return load(requests, scale)

    found = {start: capacity(ours, config, at, SLOS, ladder.scale(start)) for start in (0, 8, 20)}
    held = found[0].held
    assert held is not None and {one.held for one in found.values()} == {held} and held > 1
    assert len({round(one.scale, 9) for one in found.values()}) == 1
    assert held <= found[0].scale < ladder.above(held)
    assert misses(ours.replay(config, at(held)), SLOS) <= 0 < misses(ours.replay(config, at(ladder.above(held))), SLOS)
    # Twice as fast a machine holds more, one that cannot hold the recorded rate less than 1.
    assert capacity(ours.slower(0.5), config, at, SLOS, 1.0).scale > found[0].scale
    slow = capacity(ours.slower(20.0), config, at, SLOS, 2.0)
    assert slow.held is None and slow.scale < 1 and math.isfinite(slow.scale)
