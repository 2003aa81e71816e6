"""Steps through static buffers and a stand-in for CUDA graphs: the tokens of a step that is launched eagerly.

The stand-in calls the captured function again, over the same buffers, as a graph would. Whatever a step may not read
holds NaN, or the largest number there is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import random_ids

from benchmarks.gpu_check import poisoned
from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.model_runner import ModelRunner, load_engine
from engine.sequence import SamplingParams

# Rows that belong to no sequence are computed too, from poison, and numpy remarks on it.
pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice encountered", "ignore:invalid value encountered")

PROMPTS = [random_ids(13, seed=1), random_ids(3, seed=2) * 2, random_ids(1, seed=3), random_ids(21, seed=4)]
OUTPUTS = (5, 7, 3, 4)


class Recorder:
    """In place of CudaCapture. captured: graphs so far; replayed: how often any of them ran."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


def generate(engine: LLMEngine, arrivals: list[int] | None = None) -> list[list[int]]:
    """Greedy tokens of PROMPTS; arrivals: the step before which each comes."""
    arrivals = arrivals or [0] * len(PROMPTS)
    found: list[list[int]] = [[] for _ in PROMPTS]
    step = 0
    while step <= max(arrivals) or engine.has_work():
        for index, arrival in enumerate(arrivals):
            if arrival == step:
                engine.add(str(index), PROMPTS[index], SamplingParams(max_tokens=OUTPUTS[index], ignore_eos=True))
        for result in engine.step():
            found[int(result.request_id)] += result.tokens
        step += 1
    return found


def captured(config: EngineConfig) -> tuple[LLMEngine, Recorder]:
    recorder = Recorder()
    with poisoned():
        return LLMEngine(config, ModelRunner(config, lambda: recorder)), recorder


CASES: dict[str, dict[str, Any]] = {
    "lengths of all kinds": {},
    "prompts in chunks beside decodes": {"max_num_batched_tokens": 16},
    "a window with sinks in int8": {"kv_cache_dtype": "int8", "kv_window": 6, "block_size": 8},
    "pages that hold no tile": {"block_size": 4, "kv_cache_dtype": "int4"},
    "tables that outgrow a bucket": {"block_size": 16},
    "preemption": {"kv_cache_memory_bytes": 8 * 4 * 2 * 2 * 8 * 4, "block_size": 4},
    "verification of one guess": {"num_speculative_tokens": 1, "speculative_method": "ngram"},
    "verification of three guesses": {"num_speculative_tokens": 3, "speculative_method": "ngram"},
}


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_eager_steps(name: str, tiny_draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "tables that outgrow a bucket":
        monkeypatch.setattr("engine.cuda_graphs.NARROWEST_TABLE", 16)
    config = EngineConfig(model=str(tiny_draft), device="cpu").updated(CASES[name])
    arrivals = [0, 0, 2, 3]  # sequences enter and leave, so that rows are another's in the next step
    wanted = generate(load_engine(config), arrivals)
    engine, recorder = captured(config.updated({"attention_backend": "triton"}))
    with poisoned():
        assert generate(engine, arrivals) == wanted
    assert recorder.replayed >= 4
    assert (engine.stats().preemptions > 0) == (name == "preemption")


def test_guesses_of_a_draft_model(tiny_draft: Path) -> None:
    config = EngineConfig(
        model=str(tiny_draft), draft_model=str(tiny_draft), device="cpu", num_speculative_tokens=2, max_num_seqs=3
    )
    wanted = generate(load_engine(config))
    engine, recorder = captured(config.updated({"attention_backend": "triton"}))
    with poisoned():
        assert generate(engine) == wanted
    assert engine.stats().accepted_tokens > 0
    # By the target of up to 3 rows a sequence, by the draft of 1 and of 2.
    assert sorted({shape.max_rows for paged in engine._runner._models for shape in paged.graphs._graphs}) == [1, 2, 3]
