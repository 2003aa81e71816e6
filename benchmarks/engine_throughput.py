"""Tokens per second of the bundled engine under one setting at a time, as ratios to its defaults in the same run.

The order rotates from round to round, so that a slow minute of the machine does not fall on one setting.
"""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.model_runner import load_engine
from engine.sequence import SamplingParams

MINI = Path(__file__).parent.parent / "engine" / "mini"
ROUNDS = 3
REQUESTS = 24
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "max_num_seqs=4": {"max_num_seqs": 4},
    "prefill_chunk_size=64": {"prefill_chunk_size": 64},
    "kv_cache_dtype=bfloat16": {"kv_cache_dtype": "bfloat16"},
    "kv_cache_dtype=int8": {"kv_cache_dtype": "int8"},
    "kv_cache_dtype=fp8_e4m3": {"kv_cache_dtype": "fp8_e4m3"},
    "kv_window=128": {"kv_window": 128},
    "num_speculative_tokens=3": {"num_speculative_tokens": 3},
    "dtype=bfloat16": {"dtype": "bfloat16"},
}


def tokens_per_second(settings: dict[str, Any]) -> float:
    """Prompt and output tokens per second over one batch of requests of mixed lengths."""
    engine = load_engine(EngineConfig(model=str(MINI / "mini"), draft_model=str(MINI / "mini-draft"), **settings))
    generator = random.Random(0)
    for index in range(REQUESTS):
        length = generator.choice((60, 80, 120, 600))
        prompt = [generator.randrange(16, 2048) for _ in range(length)]
        engine.add(str(index), prompt, SamplingParams(max_tokens=64, ignore_eos=True))
    start = time.perf_counter()
    while engine.has_work():
        engine.step()
    stats = engine.stats()
    return (stats.prompt_tokens + stats.generation_tokens) / (time.perf_counter() - start)


def measure() -> dict[str, Any]:
    """Median tokens/s of each setting and its ratio to the defaults."""
    names = list(SETTINGS)
    found: dict[str, list[float]] = {name: [] for name in names}
    tokens_per_second({})  # The first run after loading is slower: allocator and oneDNN warm up.
    for turn in range(ROUNDS):
        for name in names[turn:] + names[:turn]:
            found[name].append(tokens_per_second(SETTINGS[name]))
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {
        name: {"tokens_per_second": round(value), "ratio": round(value / medians["defaults"], 2)}
        for name, value in medians.items()
    }
