"""Speculation at a given acceptance: guesses stand by chance (synthetic_acceptance), so random weights will do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.rows import Row, Target, at_least
from benchmarks.gpu.runs import Request, median_run, play, prompts
from benchmarks.gpu.shapes import weights_read
from engine.llm_engine import LLMEngine

MODEL, DRAFT = "Llama-2-7B", "draft of the 7B"
DEPTH = 4
QUOTED: dict[float, dict[int, Target]] = {0.7: {1: at_least(1.8)}, 0.25: {1: at_least(0.98), 32: at_least(0.98)}}
"""Times the speed without speculation, by acceptance and batch. No slowdown: within the noise of two runs."""
BATCHES = (1, 32)


def speculation_rows(bench: Bench) -> Iterator[Row]:
    engine = bench.engine(MODEL, DRAFT, max_num_seqs=max(BATCHES), num_speculative_tokens=DEPTH)
    cost = weights_read(bench.config(DRAFT)) / weights_read(bench.config(MODEL))
    for batch in BATCHES:
        requests = [Request(prompt, bench.sizes.guessed) for prompt in prompts(batch, bench.sizes.prompt)]
        alone = _rate(bench, engine, requests, num_speculative_tokens=0)
        for acceptance, targets in QUOTED.items():
            settings = {"num_speculative_tokens": DEPTH, "speculation_adaptive": True}
            adaptive = _rate(bench, engine, requests, synthetic_acceptance=acceptance, **settings)
            details = {"tokens/s": adaptive, "tokens/s without": alone, "depth at the end": engine.stats().spec_depth}
            details |= {"ideal x": ideal_speedup(acceptance, cost), "draft bytes": cost}
            name = f"{MODEL}, batch {batch}, acceptance {acceptance:.0%}, adaptive depth"
            yield Row(name, adaptive / alone, "x without speculation", targets.get(batch), "", details)


def _rate(bench: Bench, engine: LLMEngine, requests: list[Request], **settings: Any) -> float:
    """Tokens per second of decoding, under those settings."""
    engine.reconfigure(engine.config.updated(settings))
    play(engine, requests)
    return median_run(engine, requests, bench.sizes.repeats).decode_rate()


def ideal_speedup(acceptance: float, cost: float) -> float:
    """(1 - a^(K+1)) / (1 - a) / (1 + K c) at the best K up to DEPTH (Leviathan et al. 2023, theorem 3.8).

    acceptance a of a guess; cost c: a step of the draft over a step of the target, here by the bytes they read.
    """
    depths = range(DEPTH + 1)
    return max((1 - acceptance ** (k + 1)) / (1 - acceptance) / (1 + k * cost) for k in depths)
