"""Scheduler and block manager under random traffic, with a runner that computes nothing."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.runner import Computed, RowResult
from engine.scheduler import ScheduledSequence
from engine.sequence import SamplingParams


class CountingRunner:
    """Accepts every other guess and returns the position as the token; checks each step against the rules."""

    def __init__(self, config: EngineConfig, num_blocks: int, max_model_len: int = 512) -> None:
        self.config, self.num_blocks, self.max_model_len = config, num_blocks, max_model_len
        self.model_window: int | None = None
        self.asynchronous = False
        self.steps: list[list[ScheduledSequence]] = []

    def launch(self, step: list[ScheduledSequence]) -> Computed:
        config = self.config
        assert 0 < sum(item.rows for item in step) <= config.max_num_batched_tokens
        assert len(step) <= config.max_num_seqs
        owners = Counter(page for item in step for page in item.sequence.block_table if page is not None)
        assert all(count == 1 for count in owners.values()), "a page belongs to one sequence"
        results = []
        for item in step:
            end = item.start + item.rows
            assert len(item.sequence.block_table) * config.block_size >= end, "every row has a page"
            assert item.num_tokens <= (config.prefill_chunk_size or config.max_num_batched_tokens)
            tokens = tuple(range(end - item.num_drafts, end - item.num_drafts + item.num_drafts // 2 + 1))
            draft = item.start + item.num_tokens if config.num_speculative_tokens else 0
            results.append(
                RowResult(tokens if item.samples else (), num_drafted=item.num_drafts, num_draft_computed=draft)
            )
        self.steps.append(step)
        return Computed(results)

    def reconfigure(self, config: EngineConfig) -> None:
        self.config = config


configs = st.builds(
    lambda seqs, extra, chunk, block, window, sinks, depth, policy, target: EngineConfig(
        model="none",
        draft_model="none",
        max_num_seqs=seqs,
        max_num_batched_tokens=seqs + extra,
        prefill_chunk_size=chunk,
        block_size=block,
        kv_window=window,
        kv_sink_tokens=sinks,
        num_speculative_tokens=depth,
        scheduling_policy=policy,
        itl_target=target,
    ),
    seqs=st.integers(1, 6),
    extra=st.integers(0, 40),
    chunk=st.none() | st.integers(1, 20),
    block=st.sampled_from([1, 3, 8, 16]),
    window=st.none() | st.integers(1, 40),
    sinks=st.integers(0, 9),
    depth=st.integers(0, 4),
    policy=st.sampled_from(["fcfs", "priority", "fair"]),
    target=st.sampled_from([None, 1e-9, 1e-4]),
)
requests = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 30), st.none() | st.integers(0, 25)), min_size=1, max_size=12
)


@settings(max_examples=300)
@given(config=configs, requests=requests, blocks=st.integers(4, 60))
def test_every_request_ends_and_no_page_leaks(
    config: EngineConfig, requests: list[tuple[int, int, int | None]], blocks: int
) -> None:
    runner = CountingRunner(config, blocks)
    engine = LLMEngine(config, runner)
    wanted: dict[str, int] = {}
    aborts: dict[int, list[str]] = {}
    for index, (prompt, output, abort_at) in enumerate(requests):
        try:
            params = SamplingParams(max_tokens=output, ignore_eos=True)
            engine.add(str(index), [1] * prompt, params, priority=index % 3, tenant=str(index % 2))
        except ValueError as error:
            assert "pages" in str(error)
            continue
        if abort_at is None:
            wanted[str(index)] = output
        else:
            aborts.setdefault(abort_at, []).append(str(index))
    got: Counter[str] = Counter()
    for step in range(10_000):
        for request_id in aborts.pop(step, []):
            engine.abort(request_id)
        if not engine.has_work():
            break
        for output in engine.step():
            got[output.request_id] += len(output.tokens)
    assert not engine.has_work(), "every request ends"
    assert {key: got[key] for key in wanted} == wanted
    stats = engine.stats()
    assert stats.blocks_free == stats.blocks_total
    assert stats.running == stats.waiting == 0


def test_decodes_come_before_prefills() -> None:
    config = EngineConfig(model="none", max_num_seqs=4, max_num_batched_tokens=8)
    runner = CountingRunner(config, 100)
    engine = LLMEngine(config, runner)
    engine.add("chat", [1] * 4, SamplingParams(max_tokens=20, ignore_eos=True))
    engine.step()
    engine.add("long", [1] * 60, SamplingParams(max_tokens=1, ignore_eos=True))
    while engine.has_work():
        engine.step()
    mixed = [[(i.sequence.request_id, i.rows) for i in step] for step in runner.steps[1:9]]
    assert mixed == [[("chat", 1), ("long", 7)]] * 8, "the running stream advances in every step of the long prompt"


def test_first_come_first_served() -> None:
    config = EngineConfig(model="none", max_num_seqs=2, max_num_batched_tokens=64)
    runner = CountingRunner(config, 100)
    engine = LLMEngine(config, runner)
    for name in "abcd":
        engine.add(name, [1] * 4, SamplingParams(max_tokens=3, ignore_eos=True))
    finished = []
    while engine.has_work():
        finished += [o.request_id for o in engine.step() if o.finish_reason]
    assert finished == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        pytest.param(0, 1, "prompt: expected at least one token", id="empty prompt"),
        pytest.param(500, 20, "exceed max_model_len 512", id="longer than the context"),
        pytest.param(300, 100, "needs 25 pages of 16 tokens, the KV cache has 20", id="larger than the pool"),
    ],
)
def test_what_can_never_run_is_refused(prompt: int, max_tokens: int, message: str) -> None:
    config = EngineConfig(model="none")
    engine = LLMEngine(config, CountingRunner(config, 20))
    with pytest.raises(ValueError, match=message):
        engine.add("a", [1] * prompt, SamplingParams(max_tokens=max_tokens))
    assert not engine.has_work()


def test_a_stop_token_ends_the_request_and_guesses_after_it_are_dropped() -> None:
    config = EngineConfig(model="none", draft_model="none", num_speculative_tokens=4)
    engine = LLMEngine(config, CountingRunner(config, 20))
    engine.add("a", [1] * 10, SamplingParams(max_tokens=30, stop_token_ids=(12,)))
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    assert [t for o in outputs for t in o.tokens] == [10, 11, 12]
    assert outputs[-1].finish_reason == "stop"
