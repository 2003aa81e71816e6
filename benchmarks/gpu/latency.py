"""Running streams beside a long prefill, and how long a change of configuration takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.rows import Row, at_most
from benchmarks.gpu.runs import Answer, Request, Run, play, prompts
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.tradeoffs import percentile
from engine.llm_engine import LLMEngine

MODEL = "Llama-3-8B"
OUTPUT = 4000
"""Of a stream: more than it comes to."""
ROOM = 1.4
"""itl_target over the median step without the prefill: what is promised is 1.5 at the 99th percentile."""
STALL_RATIO = 1.5
RECONFIGURE_S = 2.0


def latency_rows(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes
    positions = sizes.stalling_prompt + sizes.stream_context
    engine = bench.engine(MODEL, max_model_len=positions + OUTPUT, max_num_seqs=sizes.streams + 1)
    calm = play(engine, _streams(sizes), enough=lambda answers: min(len(a.stamps) for a in answers) > sizes.answer)
    yield _stall_row(bench, engine, calm, f"chunks of {sizes.stalling_chunk}", prefill_chunk_size=sizes.stalling_chunk)
    yield _stall_row(bench, engine, calm, "no chunks", prefill_chunk_size=None)
    yield from _reconfigure_rows(engine, bench)
    # Last: where steps with a prompt are slow whatever their size, this takes long.
    itl_target = ROOM * statistics.median(calm.decode_gaps())
    yield _stall_row(bench, engine, calm, "itl_target", itl_target=itl_target)


def _streams(sizes: Sizes) -> list[Request]:
    return [Request(prompt, OUTPUT) for prompt in prompts(sizes.streams, sizes.stream_context)]


def _stall_row(bench: Bench, engine: LLMEngine, calm: Run, label: str, **settings: Any) -> Row:
    """p99 of the streams' gaps while the prompt is computed, over their p99 without it."""
    sizes = bench.sizes
    engine.reconfigure(engine.config.updated(settings))
    long = Request(prompts(1, sizes.stalling_prompt, seed=1)[0], 1)
    run = play(engine, _streams(sizes), late=long, enough=lambda answers: _answered(answers, sizes.streams))
    ordinary, stalled = percentile(calm.decode_gaps(), 99), percentile(_gaps_beside(run), 99)
    details = {"p99 ITL ms": stalled * 1e3, "p99 ITL ms alone": ordinary * 1e3, "TTFT s": run.answers[-1].ttft}
    name = (
        f"{MODEL}, {sizes.streams} x {sizes.stream_context} tokens beside a prompt of {sizes.stalling_prompt}, {label}"
    )
    target = None if label == "no chunks" else at_most(STALL_RATIO)
    return Row(name, stalled / ordinary, "x p99 ITL alone", target, "", details)


def _answered(answers: list[Answer], streams: int) -> bool:
    """Whether the prompt beside the streams has its token."""
    return len(answers) > streams and bool(answers[-1].stamps)


def _gaps_beside(run: Run) -> list[float]:
    """The streams' gaps that ended between the arrival of the last request and its first token."""
    *streams, long = run.answers
    return [gap for answer in streams for gap in answer.gaps(long.request.at, long.stamps[0][0])]


def _reconfigure_rows(engine: LLMEngine, bench: Bench) -> Iterator[Row]:
    """The pool of full size is rebuilt by the cache changes. The first use of a page dtype compiles its kernels."""
    request = Request(prompts(1, bench.sizes.prompt)[0], 2)
    engine.reconfigure(engine.config.updated({"kv_cache_dtype": "bfloat16"}))
    play(engine, [request])
    changes: dict[str, dict[str, Any]] = {
        "hot (max_num_batched_tokens)": {"max_num_batched_tokens": 8192},
        "cache (to int8 pages)": {"kv_cache_dtype": "int8"},
        "cache (back to bfloat16)": {"kv_cache_dtype": "bfloat16"},
    }
    for name, change in changes.items():
        start = time.perf_counter()
        engine.reconfigure(engine.config.updated(change))
        took = time.perf_counter() - start
        details = {"s to the next first token": took + play(engine, [request]).answers[0].ttft}
        yield Row(f"{MODEL}, reconfigure, {name}", took, "s", at_most(RECONFIGURE_S), "", details)
