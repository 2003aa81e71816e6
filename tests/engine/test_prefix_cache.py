"""Prefix caching: pages shared by hash, none leaked, and the same tokens as without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from paged_runner import PagedRunner, check_pages

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.model_runner import load_engine
from engine.sequence import SamplingParams


class SharedPages(RuleBasedStateMachine):
    """Random traffic over few distinct beginnings, in pools so small that sequences are preempted."""

    @initialize(
        blocks=st.integers(6, 30),
        block=st.sampled_from([1, 2, 4]),
        seqs=st.integers(1, 5),
        extra=st.integers(0, 30),
        window=st.none() | st.integers(1, 20),
        sinks=st.integers(0, 5),
        depth=st.integers(0, 3),
        caching=st.sampled_from([True, True, True, False]),
        heavy=st.integers(0, 2),
    )
    def start(
        self,
        blocks: int,
        block: int,
        seqs: int,
        extra: int,
        window: int | None,
        sinks: int,
        depth: int,
        caching: bool,
        heavy: int,
    ) -> None:
        heavy_tokens = 0 if caching or depth or window is None else heavy * block
        config = EngineConfig(
            model="none",
            draft_model="none",
            max_num_seqs=seqs,
            max_num_batched_tokens=seqs + extra,
            block_size=block,
            kv_window=window,
            kv_sink_tokens=sinks,
            kv_heavy_tokens=heavy_tokens,
            num_speculative_tokens=depth,
            enable_prefix_caching=caching,
        )
        self.engine = LLMEngine(config, PagedRunner(config, blocks))
        self.count = 0

    @rule(
        beginning=st.integers(0, 1), shared=st.integers(0, 20), own=st.integers(0, 6), output=st.integers(1, 15),
        forced=st.booleans(),
    )  # fmt: skip
    def add(self, beginning: int, shared: int, own: int, output: int, forced: bool) -> None:
        prompt = [beginning + 10] * shared + list(range(20, 20 + own))
        targets = tuple(range(30, 30 + output)) if forced else None
        try:
            self.engine.add(str(self.count), prompt, SamplingParams(max_tokens=output, ignore_eos=True, forced=targets))
        except ValueError as error:
            assert "pages" in str(error) or "at least one token" in str(error)
        self.count += 1

    @precondition(lambda self: self.engine.has_work())
    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            if self.engine.has_work():
                before = self.engine._runner.steps
                self.engine.step()
                assert self.engine._runner.steps == before + 1, "a step with work computes something"

    @precondition(lambda self: self.engine.has_work())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.engine.abort(data.draw(st.sampled_from(sorted(self.engine._sequences))))

    @invariant()
    def pages_add_up(self) -> None:
        if hasattr(self, "engine"):
            check_pages(self.engine)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for _ in range(5000):
                if not self.engine.has_work():
                    break
                self.engine.step()
            assert self.engine.stats().blocks_free == self.engine.stats().blocks_total


SharedPages.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
TestSharedPages = SharedPages.TestCase


def ids(length: int, seed: int) -> list[int]:
    return torch.randint(4, 384, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [ids(90, 1), ids(90, 1)[:64], ids(90, 1)[:50] + ids(30, 2), ids(33, 3), ids(90, 1) + ids(20, 4)]
GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)


def run(engine: LLMEngine, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        engine.add(str(index), prompt, params)
    while engine.has_work():
        for output in engine.step():
            tokens[int(output.request_id)] += output.tokens
    check_pages(engine)
    return tokens


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"prefill_chunk_size": 7}, id="chunks of 7 tokens"),
        pytest.param({"max_num_seqs": 1}, id="one after the other: later ones hit"),
        pytest.param({"kv_window": 24, "kv_sink_tokens": 5, "max_num_seqs": 1}, id="window"),
        pytest.param({"kv_window": 40, "prefill_chunk_size": 9, "block_size": 4}, id="window and chunks"),
        pytest.param({"num_speculative_tokens": 3}, id="speculation"),
        pytest.param({"num_speculative_tokens": 3, "speculative_method": "ngram"}, id="ngram speculation"),
        pytest.param({"num_speculative_tokens": 3, "kv_window": 60, "max_num_seqs": 2}, id="speculation and window"),
        pytest.param({"kv_cache_memory_bytes": 12 * 16 * 2 * 2 * 2 * 16 * 4}, id="a pool that makes it preempt"),
    ],
)
def test_a_hit_equals_a_cold_start(changes: dict[str, Any], tiny_llama: Path, tiny_draft: Path) -> None:
    config = EngineConfig(model=str(tiny_llama), draft_model=str(tiny_draft), **changes)
    cold = run(load_engine(config), PROMPTS)
    engine = load_engine(config.updated({"enable_prefix_caching": True}))
    assert [run(engine, PROMPTS), run(engine, PROMPTS)] == [cold, cold]
    assert engine.stats().prefix_cache_hits > 100


def test_hits_are_whole_blocks_of_all_but_the_last_token(tiny_llama: Path) -> None:
    engine = load_engine(EngineConfig(model=str(tiny_llama), enable_prefix_caching=True))
    one = SamplingParams(max_tokens=1, ignore_eos=True)
    run(engine, [ids(64, 1)], one)
    assert engine.stats().prefix_cache_hits == 0
    run(engine, [ids(64, 1)], one)
    stats = engine.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits, stats.prompt_tokens) == (128, 48, 80)


def test_generated_blocks_are_found_by_the_next_turn(tiny_llama: Path) -> None:
    engine = load_engine(EngineConfig(model=str(tiny_llama), enable_prefix_caching=True))
    [answer] = run(engine, [ids(40, 1)])
    run(engine, [ids(40, 1) + answer + ids(10, 5)])
    # 40 + 24 tokens, of which the last was never fed back.
    assert engine.stats().prefix_cache_hits == 48


def test_scores_hit_but_do_not_publish_while_speculation_is_on(tiny_llama: Path, tiny_draft: Path) -> None:
    config = EngineConfig(model=str(tiny_llama), draft_model=str(tiny_draft), enable_prefix_caching=True)
    forced = SamplingParams(max_tokens=20, ignore_eos=True, forced=tuple(ids(20, 9)), logprobs=True)
    for depth, hits in ((0, 80), (2, 0)):
        engine = load_engine(config.updated({"num_speculative_tokens": depth}))
        run(engine, [PROMPTS[0]], forced)
        run(engine, [PROMPTS[0]])
        assert engine.stats().prefix_cache_hits == hits
        run(engine, [PROMPTS[0]], forced)
        assert engine.stats().prefix_cache_hits == hits + 80


def test_nothing_is_published_after_the_first_eviction(tiny_llama: Path) -> None:
    config = EngineConfig(model=str(tiny_llama), enable_prefix_caching=True, kv_window=20, prefill_chunk_size=32)
    engine = load_engine(config)
    run(engine, [PROMPTS[0]])
    run(engine, [PROMPTS[0]])
    # Two chunks of 32 were published, the second one before its eviction; the third came after that.
    assert engine.stats().prefix_cache_hits == 64


def test_a_preempted_sequence_finds_its_own_pages() -> None:
    config = EngineConfig(model="none", enable_prefix_caching=True, block_size=4, max_num_batched_tokens=64)
    engine = LLMEngine(config, PagedRunner(config, num_blocks=12))
    for name in "ab":
        engine.add(name, [1 + ord(name)] * 18, SamplingParams(max_tokens=20, ignore_eos=True))
    while not engine.stats().preemptions:
        engine.step()
    while engine.has_work():
        engine.step()
    assert engine.stats().prefix_cache_hits >= 4


def test_reconfiguring_empties_the_prefix_cache(tiny_llama: Path) -> None:
    engine = load_engine(EngineConfig(model=str(tiny_llama), enable_prefix_caching=True))
    run(engine, PROMPTS[:1])
    engine.reconfigure(engine.config.updated({"max_num_seqs": 3}))
    run(engine, PROMPTS[:1])
    assert engine.stats().prefix_cache_hits == 0
