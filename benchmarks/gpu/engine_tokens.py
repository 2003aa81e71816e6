"""Whether the engine's tokens depend on what they must not: the device, CUDA graphs, steps in flight."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.model_runner import load_engine
from engine.sequence import SamplingParams

MINI = Path(__file__).parents[2] / "engine" / "mini"
DRAFTED = {"draft_model": str(MINI / "mini-draft"), "num_speculative_tokens": 3}
ROUNDING = 0.05
"""Share of requests whose greedy tokens may differ in bfloat16, where shapes of products differ."""


def checks(device: str, requests: int = 64, output: int = 64) -> Iterator[tuple[str, float, float]]:
    """What is compared, the share of requests whose tokens differ, and the most that may."""
    for dtype, rounding in (("float32", 0.0), ("bfloat16", ROUNDING)):
        pairs: dict[str, tuple[dict[str, Any], dict[str, Any], bool, float]] = {
            f"{device} against the CPU": ({"device": "cpu"}, {}, False, rounding),
            "graphs against eager steps": ({"enforce_eager": True}, {}, False, rounding),
            "graphs against eager steps, with a draft": ({**DRAFTED, "enforce_eager": True}, DRAFTED, False, rounding),
            # The batches are the same, so rounding is too.
            "steps in flight against none": ({"async_scheduling": False}, {"async_scheduling": True}, True, 0.0),
        }
        for name, (one, other, sampled, bound) in pairs.items():
            common = {"device": device, "dtype": dtype}
            yield f"{name}, {dtype}", differing(common | one, common | other, sampled, requests, output), bound


def differing(one: dict[str, Any], other: dict[str, Any], sampled: bool, requests: int, output: int) -> float:
    """Share of requests that two engines with these settings answer otherwise. sampled: every other one is not greedy.

    Requests join in every other step, so that prompts are chunked beside decodes and batches change.
    """
    generator = random.Random(1)
    prompts = [[generator.randrange(16, 2048) for _ in range(generator.randrange(8, 300))] for _ in range(requests)]
    pairs = zip(answers(one, prompts, sampled, output), answers(other, prompts, sampled, output), strict=True)
    return sum(a != b for a, b in pairs) / requests


def answers(settings: dict[str, Any], prompts: list[list[int]], sampled: bool, output: int) -> list[list[int]]:
    """The tokens that an engine of the bundled model with these settings gives each prompt."""
    return served(load_engine(EngineConfig(model=str(MINI / "mini"), **settings)), prompts, sampled, output)


def served(engine: LLMEngine, prompts: list[list[int]], sampled: bool, output: int) -> list[list[int]]:
    """The tokens that an engine gives each prompt."""
    tokens: list[list[int]] = [[] for _ in prompts]
    waiting = list(enumerate(prompts))
    while waiting or engine.has_work():
        if waiting and (engine.stats().steps >= 2 * waiting[0][0] or not engine.has_work()):
            index, prompt = waiting.pop(0)
            temperature = 0.8 * (index % 2) if sampled else 0.0
            params = SamplingParams(max_tokens=output, temperature=temperature, top_p=0.9, ignore_eos=True)
            engine.add(str(index), prompt, params)
        for result in engine.step():
            tokens[int(result.request_id)] += result.tokens
    return tokens
