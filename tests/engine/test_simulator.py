"""The simulator against sums done by hand, and against the real engine: same step times, same batches, same tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.model_runner import ModelRunner
from engine.profile import Profile
from engine.runner import Computed, Pending
from engine.scheduler import ScheduledSequence
from engine.sequence import SamplingParams
from engine.simulator import Answer, Arrival, SimulatedRunner, Simulation, chance, fitted
from engine.step_model import StepModel

VOCAB = 384
BLOCKS_128 = 128 * 16 * 2 * 2 * 2 * 16 * 4
"""Bytes of 128 pages of 16 tokens of the tiny model: 2 layers, keys and values, 2 heads of 16, float32."""


def machine(**seconds: float) -> StepModel:
    """seconds: for one of each count, by its name."""
    names = ("steps", "rows", "sequences", "groups", "context", "pairs", "draft_passes", "draft_rows", "draft_context")
    assert set(seconds) <= set(names)
    return StepModel(tuple(seconds.get(name, 0.0) for name in names))


def profile(model: StepModel, **changes: Any) -> Profile:
    values = {"acceptance": (), "ingress": 0.0, "egress": 0.0, **changes}
    return Profile("float32", {"tiny-llama0/auto/auto": model}, **values)


def config(model: Path, **settings: Any) -> EngineConfig:
    return EngineConfig(model=str(model), kv_cache_memory_bytes=BLOCKS_128, **settings)


def request(name: str, at: float, prompt: int, output: int, **more: Any) -> Arrival:
    return Arrival(name, at, tuple(range(10, 10 + prompt)), output, **more)


HAND_MADE: list[tuple[str, dict[str, float], dict[str, Any], list[Arrival], dict[str, list[float]]]] = [
    (
        "a step of 1 s each: the prompt and the first token in one, then a token a step",
        {"steps": 1.0}, {}, [request("a", 2.0, 10, 3)], {"a": [3.0, 4.0, 5.0]},
    ),
    (
        "chunks of 4: a prompt of 10 takes three steps",
        {"steps": 1.0}, {"prefill_chunk_size": 4}, [request("a", 0.0, 10, 2)], {"a": [3.0, 4.0]},
    ),
    (
        "1 s a token: what comes during a step waits for its end, and then shares the next",
        {"rows": 1.0}, {}, [request("a", 0.0, 4, 3), request("b", 1.0, 2, 2)],
        # Steps: 4 rows of a; 1 of a and 2 of b; 1 each.
        {"a": [4.0, 7.0, 9.0], "b": [7.0, 9.0]},
    ),
    (
        "one seat: the second waits for the first to leave",
        {"steps": 1.0}, {"max_num_seqs": 1}, [request("a", 0.0, 4, 2), request("b", 0.0, 4, 1)],
        {"a": [1.0, 2.0], "b": [3.0]},
    ),
    (
        "a page of 16 read is 16 tokens of context for each sequence; pairs are those times its rows",
        {"context": 1.0, "pairs": 10.0}, {}, [request("a", 0.0, 2, 2)],
        # 16 + 2 x 16 x 10, then 16 + 1 x 16 x 10.
        {"a": [336.0, 512.0]},
    ),
    (
        "two prompts of unlike lengths are two groups, then one",
        {"groups": 1.0, "sequences": 10.0}, {}, [request("a", 0.0, 3, 2), request("b", 0.0, 4, 2)],
        {"a": [22.0, 43.0], "b": [22.0, 43.0]},
    ),
    (
        "a queue of none: who finds every seat taken is refused",
        {"steps": 1.0}, {"max_num_seqs": 1, "max_queued_requests": 0},
        [request("a", 0.0, 4, 3), request("b", 0.5, 4, 1), request("c", 5.0, 4, 1)],
        {"a": [1.0, 2.0, 3.0], "b": [], "c": [6.0]},
    ),
    (
        "longer than the context: refused, the others go on",
        {"steps": 1.0}, {}, [request("a", 0.0, 510, 3), request("b", 0.0, 4, 1)], {"a": [], "b": [1.0]},
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", HAND_MADE, ids=lambda case: case[0])
def test_sums_by_hand(tiny_llama: Path, case: tuple[Any, ...]) -> None:
    _, seconds, settings, arrivals, expected = case
    simulation = Simulation(config(tiny_llama, **settings), profile(machine(**seconds)), arrivals)
    assert not simulation.run()
    assert {name: answer.times for name, answer in simulation.answers.items()} == expected
    assert [a.error for a in simulation.answers.values()] == [None if t else "http_4xx" for t in expected.values()]


def test_the_way_to_and_from_the_client_takes_its_time(tiny_llama: Path) -> None:
    model = profile(machine(steps=1.0), ingress=0.25, egress=0.5)
    simulation = Simulation(config(tiny_llama), model, [request("a", 1.0, 4, 2)])
    simulation.run()
    assert simulation.answers["a"].times == [2.75, 3.75]


def test_a_client_waits_no_longer_than_its_deadline(tiny_llama: Path) -> None:
    simulation = Simulation(config(tiny_llama), profile(machine(steps=1.0)), [request("a", 0.0, 4, 9)], until=3.5)
    assert not simulation.run()
    assert simulation.answers["a"].times == [1.0, 2.0, 3.0] and not simulation.ended


def test_it_can_be_watched_on_the_way(tiny_llama: Path) -> None:
    simulation = Simulation(config(tiny_llama), profile(machine(steps=1.0)), [request("a", 0.0, 4, 4)])
    assert simulation.run(1.5) and simulation.answers["a"].times == [1.0, 2.0]
    assert not simulation.run(10.0) and simulation.answers["a"].times == [1.0, 2.0, 3.0, 4.0]


def test_a_later_turn_arrives_when_it_is_said_to(tiny_llama: Path) -> None:
    def following(answer: Answer) -> Arrival | None:
        return request("b", answer.times[-1] + 5.0, 4, 1) if answer.arrival.name == "a" else None

    model = profile(machine(steps=1.0))
    simulation = Simulation(config(tiny_llama), model, [request("a", 0.0, 4, 2)], following=following)
    simulation.run()
    assert simulation.answers["b"].times == [8.0]


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 3), (0.0, 9)])
def test_guesses_that_stand_save_steps(tiny_llama: Path, tiny_draft: Path, rate: float, steps: int) -> None:
    settings = config(tiny_llama, draft_model=str(tiny_draft), num_speculative_tokens=3, synthetic_acceptance=rate)
    simulation = Simulation(settings, profile(machine(steps=1.0)), [request("a", 0.0, 4, 9)])
    simulation.run()
    assert len(simulation.answers["a"].times) == 9 and simulation.now == steps  # 1 + 4 + 4 tokens, or one each


def test_chance_is_even_and_the_same_in_every_configuration() -> None:
    drawn = [chance(request, position) for request in range(100) for position in range(100)]
    assert abs(sum(drawn) / len(drawn) - 0.5) < 0.02 and abs(sum(x < 0.3 for x in drawn) / len(drawn) - 0.3) < 0.02
    pairs = zip(drawn, drawn[1:], strict=False)
    assert abs(sum(a < 0.5 and b < 0.5 for a, b in pairs) / len(drawn) - 0.25) < 0.02


def test_names_of_blocks_may_be_kept_between_simulations(tiny_llama: Path) -> None:
    prompt = tuple(range(10, 74))
    arrivals = [Arrival(str(i), float(i), prompt[: 64 - i], 4) for i in range(4)]
    kept: dict[tuple[str, int], list[bytes]] = {}
    found = []
    for size in (16, 8, 16, 8):
        settings = config(tiny_llama, enable_prefix_caching=True, block_size=size)
        simulation = Simulation(settings, profile(machine(rows=0.01)), arrivals, hashes=kept)
        simulation.run()
        found.append(({n: a.times for n, a in simulation.answers.items()}, simulation.engine.stats().prefix_cache_hits))
    assert found[:2] == found[2:] and found[0] != found[1]
    assert found[0][1] == 48 * 3 and found[1][1] == 56 + 56 + 56


def test_what_was_not_profiled_is_not_simulated(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match="no step times for tiny-llama0/auto/int8, only for tiny-llama0/auto/auto"):
        SimulatedRunner(config(tiny_llama, kv_cache_dtype="int8"), profile(machine()))


@pytest.mark.parametrize(
    ("how", "left"), [("refuse", range(10)), ("keep_tail", range(4, 10)), ("keep_head_and_tail", [0, 1, 2, 7, 8, 9])]
)
def test_prompts_are_cut_as_the_server_cuts_them(how: Any, left: Any) -> None:
    settings = EngineConfig(model="none", prompt_truncation=how)
    assert fitted(tuple(range(10)), 2, 8, settings) == tuple(left)


class Clocked(ModelRunner):
    """The real runner on the simulated runner's clock: real tokens, known step times."""

    def __init__(self, config: EngineConfig, model: Profile) -> None:
        super().__init__(config)
        self.twin = SimulatedRunner(config, model)
        self.log: list[list[tuple[str, int, int, int]]] = []

    def launch(self, step: list[ScheduledSequence]) -> Pending:
        self.log.append(batch(step))
        self.twin.launch(step)
        return super().launch(step)


def batch(step: list[ScheduledSequence]) -> list[tuple[str, int, int, int]]:
    return [(item.sequence.request_id, item.start, item.num_tokens, item.num_drafts) for item in step]


def serve(runner: Clocked, engine: LLMEngine, arrivals: list[Arrival]) -> dict[str, list[float]]:
    """What a step loop does."""
    times: dict[str, list[float]] = {arrival.name: [] for arrival in arrivals}
    due = sorted(arrivals, key=lambda arrival: arrival.at)
    while due or engine.has_work():
        if not engine.has_work():
            runner.twin.now = max(runner.twin.now, due[0].at)
        while due and due[0].at <= runner.twin.now:
            job = due.pop(0)
            params = SamplingParams(max_tokens=job.output, ignore_eos=True)
            engine.add(job.name, job.prompt, params, job.priority, job.tenant)
        for output in engine.step():
            times[output.request_id] += [runner.twin.now] * len(output.tokens)
    return times


def traffic(seed: int, requests: int = 24) -> list[Arrival]:
    """Bursts of short and long prompts, some with a common beginning, of three tenants."""
    generator = random.Random(seed)
    common = [generator.randrange(4, VOCAB) for _ in range(48)]
    found = []
    for index in range(requests):
        shared = generator.choice([0, 0, 20, 48])
        own = [generator.randrange(4, VOCAB) for _ in range(generator.choice([3, 3, 20, 60, 130]))]
        at = generator.choice([0.0, 0.4, 0.5, 1.1]) + 0.01 * index
        output = generator.randrange(1, 60)
        found.append(Arrival(str(index), at, tuple(common[:shared] + own), output, f"t{index % 3}", index % 2))
    return found


SPECULATION = {"num_speculative_tokens": 2, "synthetic_acceptance": 1.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "chunks": {"prefill_chunk_size": 32, "max_num_batched_tokens": 64},
    "a pool that preempts": {"kv_cache_memory_bytes": BLOCKS_128 // 8, "max_num_seqs": 16},
    "a pool where some skip ahead": {
        "kv_cache_memory_bytes": BLOCKS_128 // 6, "max_skip_ahead": 3, "watermark": 0.1, "max_num_seqs": 12,
    },
    "window": {"kv_window": 32, "kv_sink_tokens": 4, "kv_cache_memory_bytes": BLOCKS_128 // 8},
    "prefix caching": {"enable_prefix_caching": True, "kv_cache_memory_bytes": BLOCKS_128 // 3},
    "fair": {"scheduling_policy": "fair", "max_num_seqs": 4},
    "priority": {"scheduling_policy": "priority", "max_num_seqs": 4, "kv_cache_memory_bytes": BLOCKS_128 // 6},
    "a target for the gaps": {"itl_target": 0.05},
    "draft model": SPECULATION,
    "draft model, adaptive": {**SPECULATION, "speculation_adaptive": True},
    "draft model, window": {**SPECULATION, "kv_window": 32, "kv_cache_memory_bytes": BLOCKS_128 // 4},
    "draft model, prefix caching": {**SPECULATION, "enable_prefix_caching": True},
    "draft model whose guesses fall": {**SPECULATION, "synthetic_acceptance": 0.0, "speculation_adaptive": True},
}  # fmt: skip
MACHINE = machine(
    steps=0.01, rows=0.0005, sequences=0.0002, groups=0.001, context=1e-6, pairs=1e-8,
    draft_passes=0.002, draft_rows=0.0001, draft_context=1e-7,
)  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_batches_and_times_as_the_real_engine(tiny_llama: Path, tiny_draft: Path, name: str) -> None:
    """Every decision is the engine's: only what the model says, and how long that takes, is made up."""
    values: dict[str, Any] = {"kv_cache_memory_bytes": BLOCKS_128, "draft_model": str(tiny_draft), **SETTINGS[name]}
    settings, arrivals = EngineConfig(model=str(tiny_llama), **values), traffic(seed=len(name))
    real = Clocked(settings, profile(MACHINE))
    times = serve(real, engine := LLMEngine(settings, real, clock=lambda: real.twin.now), arrivals)
    simulation = Simulation(settings, profile(MACHINE), arrivals)
    batches = logged(simulation)
    simulation.run()
    assert batches == real.log
    assert {answer.arrival.name: answer.times for answer in simulation.answers.values()} == times
    assert simulation.engine.stats() == engine.stats()
    if "preempts" in name:
        assert engine.stats().preemptions


def logged(simulation: Simulation) -> list[list[tuple[str, int, int, int]]]:
    """The batches of a simulation, as it goes on."""
    found: list[list[tuple[str, int, int, int]]] = []
    runner = simulation.engine._runner
    launch = runner.launch

    def noted(step: list[ScheduledSequence]) -> Computed:
        found.append(batch(step))
        return launch(step)

    runner.launch = noted  # type: ignore[method-assign]
    return found
