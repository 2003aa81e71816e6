"""Steps a second of the engine's bookkeeping alone, 64 sequences, with the simulator's runner and steps of no time.

A step is a whole step: all 64 sequences get one token each. "scheduler": Scheduler and BlockManager, the loop around
them does no more than count a token. "engine": LLMEngine.step, outputs included. "arrivals": the same with requests of
128 in, 64 out that come and go, so that prompts are admitted and chunked and pages go back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from engine.config import EngineConfig
from engine.kv_cache import BlockManager
from engine.llm_engine import LLMEngine
from engine.profile import Profile
from engine.scheduler import Scheduler
from engine.sequence import SamplingParams, Sequence
from engine.simulator import SimulatedRunner
from engine.step_model import COUNTS, StepModel

SEQUENCES = 64
ROUNDS = 5
STEPS = 2_000
PROMPT = tuple(range(128))
LONG = 128 + ROUNDS * STEPS + STEPS
BLOCKS = SEQUENCES * (LONG // 16 + 1)
VARIANTS: dict[str, dict[str, Any]] = {
    "fcfs": {},
    "fair": {"scheduling_policy": "fair"},
    "window": {"kv_window": 256},
    "prefix caching": {"enable_prefix_caching": True},
}


PROFILE = Profile("float32", {"none/auto/auto": StepModel((0.0,) * len(COUNTS))})
"""Steps take no time: the runner counts what they compute and says a token a sampled row."""
PARAMS = SamplingParams(max_tokens=LONG - 128, stop_token_ids=(1, 2))
SHORT = SamplingParams(max_tokens=64, stop_token_ids=(1, 2))


def engine_of(settings: dict[str, Any]) -> LLMEngine:
    config = config_of(settings)
    return LLMEngine(config, SimulatedRunner(config, PROFILE, BLOCKS))


def config_of(settings: dict[str, Any]) -> EngineConfig:
    return EngineConfig(
        model="none", max_model_len=LONG, max_num_seqs=SEQUENCES, max_num_batched_tokens=512, **settings
    )


def scheduler_loop(settings: dict[str, Any]) -> Callable[[], object]:
    config = config_of(settings)
    blocks = BlockManager(BLOCKS, config.block_size, config.kv_window)
    scheduler = Scheduler(config, blocks, LONG)
    for index in range(SEQUENCES):
        sequence = Sequence(str(index), PROMPT, PARAMS, index)
        scheduler.add(sequence)

    def step() -> None:
        for item in scheduler.schedule():
            sequence = item.sequence
            sequence.num_computed = item.start + item.num_tokens
            if item.samples:
                sequence.append((7,))

    return step


def engine_loop(settings: dict[str, Any]) -> Callable[[], object]:
    engine = engine_of(settings)
    for index in range(SEQUENCES):
        engine.add(str(index), PROMPT, PARAMS, tenant=str(index % 4))
    return engine.step


def arrivals_loop(settings: dict[str, Any]) -> Callable[[], object]:
    engine = engine_of(settings)
    added = 0

    def step() -> None:
        nonlocal added
        while len(engine._sequences) < 2 * SEQUENCES:
            engine.add(str(added), PROMPT, SHORT, tenant=str(added % 4))
            added += 1
        engine.step()

    return step


def steps_per_second(step: Callable[[], object]) -> int:
    """The best of ROUNDS: what the code takes, without what else the machine did."""
    for _ in range(100):  # the prompts
        step()
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        found.append(STEPS / (time.perf_counter() - start))
    return round(max(found))


def measure() -> dict[str, Any]:
    """Whole steps a second; times SEQUENCES gives scheduled sequence-steps a second."""
    return {
        "sequences": SEQUENCES,
        "scheduler": steps_per_second(scheduler_loop({})),
        "engine": {name: steps_per_second(engine_loop(settings)) for name, settings in VARIANTS.items()},
        "arrivals": {name: steps_per_second(arrivals_loop(settings)) for name, settings in VARIANTS.items()},
    }


if __name__ == "__main__":
    print(measure())
