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
from engine.models.config import ModelConfig

LESS: dict[str, tuple[dict[str, Any], Target | None]] = {
    "overlap": ({"async_scheduling": False}, at_least(1.2)),
    "CUDA graphs": ({"enforce_eager": True}, None),
}
"""What is switched off, by its setting, and how many times faster we should be with it."""
TRANSFORMERS_LIMIT_S = 45.0


def qwen_rows(bench: Bench) -> Iterator[Row]:
    return _usual_rows(bench, "Qwen3-0.6B", at_least(22_000))


def llama_rows(bench: Bench) -> Iterator[Row]:
    return _usual_rows(bench, "Llama-3-8B", None)


def _usual_rows(bench: Bench, model: str, rate: Target | None) -> Iterator[Row]:
    requests = usual_requests(bench.sizes.usual, bench.sizes.usual_lengths)
    shape = bench.config(model)
    ideal = bytes_to_read(shape, requests) / bench.bandwidth
    name = f"{model}, {len(requests)} requests"
    ours = _run(bench, model, requests, bench.sizes.repeats)
    details = {"s": ours.seconds}
    most = f"{sum(request.output for request in requests) / ideal:.0f} tokens/s at {bench.ceiling}"
    yield Row(name, ours.tokens_per_s, "output tokens/s", rate, most, details)
    yield Row(name, ideal / ours.seconds, "of byte roofline", at_least(0.6), bench.ceiling, {"roofline s": ideal})
    for what, (settings, target) in LESS.items():
        other = _run(bench, model, requests, 1, **settings)
        details = {"tokens/s without": other.tokens_per_s}
        yield Row(f"{name}, beside ours without {what}", other.seconds / ours.seconds, "x", target, "", details)
    limit = TRANSFORMERS_LIMIT_S
    theirs, took, tokens = transformers_seconds(bench.sizes.shape(model), bench.device, requests, limit)
    # Cut off, it took longer than it ran, so the ratio is at least what is told.
    cut = ", cut off" if tokens < sum(request.output for request in requests) else ""
    details = {"their s": took, "their tokens/s": tokens / took}
    yield Row(f"{name}, beside {theirs}{cut}", took / ours.seconds, "x", at_least(1.0), "", details)


def _run(bench: Bench, model: str, requests: Sequence[Request], repeats: int, **settings: Any) -> Run:
    engine = bench.engine(model, **settings)
    # The batch of the warm-up shrinks from all to none as well, so that every size is compiled and captured.
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
