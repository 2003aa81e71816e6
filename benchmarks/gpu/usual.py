"""The usual benchmark of small engines (nano-vllm's bench.py): 256 requests at once, beside the byte roofline,
transformers, and ourselves without overlap and without CUDA graphs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.rows import Row, Target, at_least
from benchmarks.gpu.runs import Request, Run, median_run, play
from benchmarks.gpu.shapes import kv_bytes, weights_read
from benchmarks.gpu.transformers_batch import transformers_seconds
from engine.llm_engine import LLMEngine
from engine.models.config import ModelConfig

SWITCHES: dict[str, tuple[dict[str, Any], dict[str, Any], Target | None]] = {
    "overlap": ({"async_scheduling": False}, {"async_scheduling": None}, at_least(1.2)),
    "CUDA graphs": ({"enforce_eager": True}, {"enforce_eager": False}, None),
}
"""Off, on again, and how many times faster we should be with it (transformers with its own overlap: 1.28 at 8B)."""
TRANSFORMERS_LIMIT_S = 45.0


def qwen_rows(bench: Bench) -> Iterator[Row]:
    return _usual_rows(bench, "Qwen3-0.6B", at_least(22_000))


def llama_rows(bench: Bench) -> Iterator[Row]:
    return _usual_rows(bench, "Llama-3-8B", None)


def _usual_rows(bench: Bench, model: str, rate: Target | None) -> Iterator[Row]:
    requests = usual_requests(bench.sizes.usual, bench.sizes.usual_lengths)
    name, tokens = f"{model}, {len(requests)} requests", sum(request.output for request in requests)
    engine = bench.engine(model)
    ours = _warm_run(engine, requests, bench.sizes.repeats)
    ideal = bytes_to_read(bench.config(model), requests) / bench.bandwidth
    yield Row(
        name,
        ours.tokens_per_s,
        "output tokens/s",
        rate,
        f"{tokens / ideal:.0f} tokens/s at {bench.ceiling}",
        {"s": ours.seconds},
    )
    yield Row(name, ideal / ours.seconds, "of byte roofline", at_least(0.6), bench.ceiling, {"roofline s": ideal})
    for what, (off, on, target) in SWITCHES.items():
        engine.reconfigure(engine.config.updated(off))
        other = _warm_run(engine, requests, 1)
        engine.reconfigure(engine.config.updated(on))
        details = {"tokens/s without": other.tokens_per_s}
        yield Row(f"{name}, beside ours without {what}", other.seconds / ours.seconds, "x", target, "", details)
    del engine
    yield _beside_transformers(bench, model, requests, ours)


def _beside_transformers(bench: Bench, model: str, requests: Sequence[Request], ours: Run) -> Row:
    """How many times longer transformers takes; at least so many times, where it was cut off."""
    shape, settings = bench.sizes.shape(model), bench.sizes.transformers
    theirs, took, tokens = transformers_seconds(shape, bench.device, requests, TRANSFORMERS_LIMIT_S, **settings)
    cut = ", cut off" if tokens < sum(request.output for request in requests) else ""
    name = f"{model}, {len(requests)} requests, beside {theirs}{cut}"
    details = {"their s": took, "their tokens/s": tokens / took}
    return Row(name, took / ours.seconds, "x", at_least(1.0), "", details)


def _warm_run(engine: LLMEngine, requests: Sequence[Request], repeats: int) -> Run:
    """The batch of the warm-up shrinks from all to none as well, so that every size is compiled and captured."""
    play(engine, [Request(request.prompt, max(request.output // 16, 1)) for request in requests])
    return median_run(engine, requests, repeats)


def usual_requests(count: int, lengths: tuple[int, int]) -> list[Request]:
    """Prompts and outputs of random length within `lengths`, seed 0: 133,966 output tokens for 256 of 100 to 1,024."""
    generator = random.Random(0)
    prompts = [[generator.randint(0, 10_000) for _ in range(generator.randint(*lengths))] for _ in range(count)]
    return [Request(prompt, generator.randint(*lengths)) for prompt in prompts]


def bytes_to_read(shape: ModelConfig, requests: Sequence[Request]) -> int:
    """Of weights and KV in bfloat16 when all sequences decode together: the least a run can read."""
    kv = sum(len(r.prompt) * r.output + r.output * (r.output + 1) // 2 for r in requests) * kv_bytes(shape)
    return max(request.output for request in requests) * weights_read(shape) + kv
