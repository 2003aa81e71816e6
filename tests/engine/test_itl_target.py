"""Prefill chunks cut to a time: a runner whose steps take a known time, on a clock of its own."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scheduler import CountingRunner

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.runner import Computed
from engine.scheduler import ScheduledSequence
from engine.sequence import SamplingParams
from engine.step_times import COLD_CHUNK, MIN_CHUNK

BUDGET = 512
WARM_UP_CHUNKS = 24
"""Steps with prompt chunks, after which the table must do."""


@dataclass(frozen=True)
class Machine:
    """Seconds of a step: fixed, per token, per cached token a decode reads, per query-key pair of a prompt."""

    fixed: float
    token: float
    read: float
    pair: float

    def seconds(self, decodes: list[ScheduledSequence], chunks: list[tuple[int, int]]) -> float:
        """chunks: start and length of each."""
        pairs = sum(sum(range(start + 1, start + length + 1)) for start, length in chunks)
        tokens = len(decodes) + sum(length for _, length in chunks)
        read = sum(item.start + 1 for item in decodes)
        return self.fixed + self.token * tokens + self.read * read + self.pair * pairs


@dataclass(frozen=True)
class Step:
    """As it ran. decodes_s: what its decodes alone would have taken. pending: prompt tokens that were left to do."""

    seconds: float
    decodes: list[ScheduledSequence]
    chunks: list[tuple[int, int]]
    pending: int


class TimedRunner(CountingRunner):
    """Passes the machine's time on a clock of its own."""

    def __init__(self, config: EngineConfig, machine: Machine) -> None:
        super().__init__(config, 4000, max_model_len=4096)
        self.machine, self.now, self.log = machine, 0.0, list[Step]()

    def launch(self, step: list[ScheduledSequence]) -> Computed:
        decodes = [item for item in step if item.sequence.output]
        prompts = [item for item in step if not item.sequence.output]
        chunks = [(item.start, item.num_tokens) for item in prompts]
        pending = sum(len(item.sequence.prompt) - item.start for item in prompts)
        seconds = self.machine.seconds(decodes, chunks)
        self.now += seconds
        self.log.append(Step(seconds, decodes, chunks, pending))
        return super().launch(step)


def warm(log: list[Step]) -> list[Step]:
    """The steps with streams and chunks, after the warm-up."""
    with_chunks = [step for step in log if step.chunks]
    return [step for step in with_chunks[WARM_UP_CHUNKS:] if step.decodes]


def serve(machine: Machine, target: float | None, seed: int, steps: int = 400) -> TimedRunner:
    """Streams that come and go, and long prompts in between."""
    config = EngineConfig(model="none", max_num_seqs=16, max_num_batched_tokens=BUDGET, itl_target=target)
    runner = TimedRunner(config, machine)
    engine = LLMEngine(config, runner, clock=lambda: runner.now)
    draw = random.Random(seed)
    for index in range(steps):
        if index % 10 == 0:
            prompt = draw.choice((20, 60, 900, 1500))
            engine.add(str(index), [1] * prompt, SamplingParams(max_tokens=draw.randint(20, 80), ignore_eos=True))
        engine.step()
    return runner


machines = st.builds(
    Machine,
    fixed=st.floats(1e-3, 4e-3),
    token=st.floats(2e-6, 1e-4),
    read=st.floats(0, 1e-6),
    pair=st.floats(0, 2e-7),
)


@settings(max_examples=25)
@given(machine=machines, slack=st.floats(1.2, 4.0), seed=st.integers(0, 99))
def test_after_warm_up_no_step_with_streams_exceeds_the_target(machine: Machine, slack: float, seed: int) -> None:
    target = slack * (machine.fixed + 8 * machine.token)
    mixed = warm(serve(machine, target, seed).log)
    assert mixed
    for step in mixed:
        start, length = step.chunks[0]
        if machine.seconds(step.decodes, [(start, 1)]) <= target * 0.999:
            assert step.seconds <= target * (1 + 1e-6)
        # Never more careful than need be: a chunk that was cut fills the time.
        cut = len(step.chunks) == 1 and length < min(BUDGET - len(step.decodes), step.pending)
        if cut and length > MIN_CHUNK:
            assert machine.seconds(step.decodes, [(start, length + 1)]) > target * 0.999


SLOW = Machine(fixed=0.004, token=1e-5, read=0.0, pair=0.0)
TARGETS = [
    # the case, target, least prompt tokens of a step with streams
    ("the decodes alone exceed it", 0.001, MIN_CHUNK),
    ("just one token fits", 0.004 + 16 * 1e-5, 1),
    ("no target", None, 20),
]


@pytest.mark.parametrize(("target", "least"), [row[1:] for row in TARGETS], ids=[row[0] for row in TARGETS])
def test_prompts_go_on_whatever_the_target(target: Any, least: int) -> None:
    config = EngineConfig(model="none", max_num_seqs=16, max_num_batched_tokens=BUDGET, itl_target=target)
    runner = TimedRunner(config, SLOW)
    engine = LLMEngine(config, runner, clock=lambda: runner.now)
    engine.add("stream", [1] * 10, SamplingParams(max_tokens=3000, ignore_eos=True))
    engine.step()
    for index in range(3):
        engine.add(str(index), [1] * 320, SamplingParams(max_tokens=1, ignore_eos=True))
    while engine.stats().running + engine.stats().waiting > 1:
        engine.step()
        step = runner.log[-1]
        assert sum(length for _, length in step.chunks) >= min(least, step.pending)
        assert step.decodes, "and the stream goes on beside them"


def test_until_it_has_measured_it_takes_small_chunks() -> None:
    log = serve(SLOW, target=10.0, seed=0, steps=60).log
    first = [step for step in log if step.decodes and step.chunks]
    assert all(sum(length for _, length in step.chunks) <= COLD_CHUNK for step in first[:6])
    assert max(sum(length for _, length in step.chunks) for step in first) > 4 * COLD_CHUNK, "warm, it takes more"


def test_the_streams_of_others_would_exceed_it_otherwise() -> None:
    """The traffic of these tests does break the target where nothing cuts the chunks."""
    target = 0.006
    loose, cut = (
        [step for step in warm(serve(SLOW, t, seed=1).log) if step.seconds > target * (1 + 1e-6)]
        for t in (None, target)
    )
    assert len(loose) > 10
    assert not cut
