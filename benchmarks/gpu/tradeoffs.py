"""Batch size, page dtype and chunked prefill on a 7B shape, beside the figures that are quoted for such trade-offs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.rows import Row, Target, at_least, at_most
from benchmarks.gpu.runs import Request, Run, median_run, play, prompts
from benchmarks.gpu.shapes import kv_bytes, weights_read

MODEL = "Llama-2-7B"
QUOTED_BATCHES: dict[int, tuple[Target, Target, int]] = {
    1: (at_least(100), at_most(10), 1),
    32: (at_least(3000), at_most(30), 1),
    64: (at_least(10_000), at_most(200), 30),
    16: (at_least(6000), at_most(80), 30),
}
"""Tokens per second; milliseconds and for how many tokens. The quote of 64 and 16 names no number of tokens: its rates
times its latencies are 30 tokens a sequence."""
QUOTED_GB = 25.6
"""Of 64 sequences of 800 tokens in 16 bits."""
QUOTED_TTFT_MS = 200.0


def tradeoff_rows(bench: Bench) -> Iterator[Row]:
    yield from _batch_rows(bench, "bfloat16 weights")
    yield from _page_rows(bench)
    yield from _prefill_rows(bench)
    yield from _batch_rows(bench, "int8 weights", weight_dtype="int8")


def _batch_rows(bench: Bench, precision: str, **settings: Any) -> Iterator[Row]:
    engine, sizes = bench.engine(MODEL, max_num_seqs=max(bench.sizes.batches), **settings), bench.sizes
    read = weights_read(bench.config(MODEL), settings.get("weight_dtype", "auto"))
    for batch in sizes.batches:
        requests = [Request(prompt, sizes.answer) for prompt in prompts(batch, sizes.prompt)]
        play(engine, requests)
        run = median_run(engine, requests, sizes.repeats)
        name = f"{MODEL}, batch {batch}, {precision}"
        rate, latency, tokens = QUOTED_BATCHES.get(batch, (None, None, 1))
        kv = batch * (sizes.prompt + sizes.answer // 2) * kv_bytes(bench.config(MODEL))
        ideal = batch * bench.bandwidth / (read + kv)
        yield Row(name, run.decode_rate(), "tokens/s", rate, f"{ideal:.0f} tokens/s at {bench.ceiling}")
        yield Row(
            name, *_latency(run, tokens), latency, "", {"median ms a step": 1e3 * statistics.median(run.decode_gaps())}
        )


def _latency(run: Run, tokens: int) -> tuple[float, str]:
    """p95 milliseconds of `tokens` consecutive tokens of one sequence."""
    gaps = run.decode_gaps()
    windows = [sum(gaps[first : first + tokens]) for first in range(max(len(gaps) - tokens, 0) + 1)]
    return 1e3 * percentile(windows, 95), "ms p95 a token" if tokens == 1 else f"ms p95 of {tokens} tokens"


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that at least `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)]


def _page_rows(bench: Bench) -> Iterator[Row]:
    """The same pool, which holds the quoted 64 sequences in 16 bits, with pages of 16 and of 8 bits."""
    sequences, length = bench.sizes.stored
    shape = bench.config(MODEL)
    wide, narrow = (sequences * length * kv_bytes(shape, dtype) / 1e9 for dtype in ("bfloat16", "fp8_e4m3"))
    name = f"{MODEL}, {sequences} x {length} tokens"
    details = {"GB in 16 bits": wide, "GB in fp8": narrow, "GB quoted": QUOTED_GB}
    yield Row(f"{name}: bytes in fp8, scales included", narrow / wide, "of 16 bits", at_most(0.5), "", details)
    engine = bench.engine(MODEL, kv_cache_dtype="bfloat16", kv_cache_memory_bytes=round(wide * 1e9))
    output = min(32, length // 2)
    requests = [Request(prompt, output) for prompt in prompts(bench.sizes.held, length - output)]
    runs = {}
    for dtype in ("bfloat16", "fp8_e4m3"):
        engine.reconfigure(engine.config.updated({"kv_cache_dtype": dtype}))
        play(engine, requests[:1])
        runs[dtype] = play(engine, requests)
    both = [runs["fp8_e4m3"].peak_running, runs["bfloat16"].peak_running]
    details = {"at once in 16 bits": both[1], "at once in fp8": both[0]}
    details["x tokens/s"] = runs["fp8_e4m3"].tokens_per_s / runs["bfloat16"].tokens_per_s
    yield Row(f"{name}: concurrency of fp8 in the same pool", both[0] / both[1], "x", at_least(2.0), "", details)


def _prefill_rows(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes
    engine = bench.engine(MODEL, max_model_len=sizes.long_prompt + sizes.answer, max_num_seqs=sizes.shorts + 1)
    shorts = prompts(sizes.shorts, sizes.short_prompt)
    requests = [Request(prompts(1, sizes.long_prompt, seed=1)[0], sizes.answer)]
    requests += [Request(prompt, 32, at=index * sizes.short_gap_s) for index, prompt in enumerate(shorts)]
    name = f"{MODEL}, {sizes.shorts} short requests beside {sizes.long_prompt} tokens"
    for chunk, budget in ((sizes.chunk, 4 * sizes.chunk), (None, 16_384)):
        engine.reconfigure(
            engine.config.updated({"prefill_chunk_size": chunk, "max_num_batched_tokens": max(budget, 256)})
        )
        play(engine, requests)
        run = median_run(engine, requests, sizes.repeats)
        measured = 1e3 * percentile([answer.ttft for answer in run.answers[1:]], 95)
        details = {"long TTFT ms": 1e3 * run.answers[0].ttft, "chunk": chunk or sizes.long_prompt}
        target = at_most(QUOTED_TTFT_MS) if chunk else None
        yield Row(f"{name}, {'chunks' if chunk else 'no chunks'}", measured, "ms p95 TTFT", target, "", details)
