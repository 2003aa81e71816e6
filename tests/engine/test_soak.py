"""10,000 random requests and aborts through the engine's own scheduler and page table: nothing leaks, nothing hangs."""

from __future__ import annotations

import random
from typing import Any

from paged_runner import PagedRunner, check_pages

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.sequence import SamplingParams

ROUNDS, REQUESTS = 20, 500
CONFIGS: list[dict[str, Any]] = [
    {"enable_prefix_caching": True, "block_size": 4},
    {"enable_prefix_caching": True, "block_size": 2, "num_speculative_tokens": 2, "max_num_batched_tokens": 48},
    {"kv_window": 10, "block_size": 4, "enable_prefix_caching": True, "prefill_chunk_size": 7},
    {"kv_window": 8, "block_size": 2, "kv_heavy_tokens": 6, "kv_sink_tokens": 1},
    {"block_size": 1, "max_num_seqs": 40, "scheduling_policy": "fair", "max_skip_ahead": 4},
]


def play(engine: LLMEngine, runner: PagedRunner, rng: random.Random, first: int) -> int:
    """500 requests, arriving two a step, one in six aborted somewhere; returns how many finished."""
    waiting = [str(first + index) for index in range(REQUESTS)]
    live: list[str] = []
    finished = 0
    while waiting or engine.has_work():
        for request_id in waiting[:2]:
            prompt = [rng.randrange(3)] * rng.randrange(1, 16) + [rng.randrange(9) for _ in range(rng.randrange(8))]
            params = SamplingParams(max_tokens=rng.randrange(1, 12), ignore_eos=True)
            engine.add(request_id, prompt, params, tenant=rng.choice("ab"))
            live.append(request_id)
        del waiting[:2]
        if live and rng.random() < 1 / 3:
            engine.abort(live.pop(rng.randrange(len(live))))
        if engine.has_work():
            before = runner.steps
            outputs = engine.step()
            landed = not (engine.stats().running or engine.stats().waiting) and engine.config.async_scheduling
            assert runner.steps == before + 1 or landed, "a step with work computes something, or ends what it computed"
            done = {output.request_id for output in outputs if output.finish_reason}
            live = [request_id for request_id in live if request_id not in done]
            finished += len(done)
    return finished


def test_ten_thousand_requests_and_aborts() -> None:
    rng = random.Random(5)
    base = EngineConfig(model="none", draft_model="none", max_num_seqs=8, max_num_batched_tokens=40)
    runner = PagedRunner(base, num_blocks=44)
    engine = LLMEngine(base, runner)
    finished = 0
    for index in range(ROUNDS):
        overlap = index // len(CONFIGS) % 2 == 1
        engine.reconfigure(base.updated({"async_scheduling": overlap, **CONFIGS[index % len(CONFIGS)]}))
        finished += play(engine, runner, rng, index * REQUESTS)
        check_pages(engine)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)
    assert 0.6 * ROUNDS * REQUESTS < finished < ROUNDS * REQUESTS
    assert min(stats.preemptions, stats.evicted_blocks, stats.prefix_cache_hits, stats.accepted_tokens) > 0
