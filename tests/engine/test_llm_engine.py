"""The engine against transformers: same logits, same greedy tokens, whatever the batch, chunk, cache and draft."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.model_runner import load_engine
from engine.sequence import SamplingParams, SequenceOutput
from engine.speculative.meter import SpeculationMeter

OUTPUT = 24


def prompts(count: int = 6) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    lengths = [3, 17, 40, 64, 90, 33, 5, 120][:count]
    return [torch.randint(4, 384, (n,), generator=generator).tolist() for n in lengths]


def run(engine: LLMEngine, params: SamplingParams, ids: list[list[int]]) -> list[list[int]]:
    """Add every prompt at once, step to the end, return each request's tokens."""
    tokens = collect(engine, [(prompt, params) for prompt in ids])
    return [[t for output in outputs for t in output.tokens] for outputs in tokens]


def collect(engine: LLMEngine, requests: list[tuple[list[int], SamplingParams]]) -> list[list[SequenceOutput]]:
    for index, (prompt, params) in enumerate(requests):
        engine.add(str(index), prompt, params)
    outputs: list[list[SequenceOutput]] = [[] for _ in requests]
    while engine.has_work():
        for output in engine.step():
            outputs[int(output.request_id)].append(output)
    assert engine.stats().blocks_free == engine.stats().blocks_total, "every page must be free when nothing runs"
    return outputs


@pytest.fixture(scope="module")
def oracle(tiny_llama: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)


@pytest.fixture(scope="module")
def expected(oracle: LlamaForCausalLM) -> list[list[int]]:
    """Greedy continuations by transformers, one prompt at a time."""
    found = []
    for prompt in prompts():
        out = oracle.generate(
            torch.tensor([prompt]), max_new_tokens=OUTPUT, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        found.append(out[0, len(prompt) :].tolist())
    return found


GREEDY = SamplingParams(max_tokens=OUTPUT, ignore_eos=True)
SETTINGS: dict[str, dict[str, Any]] = {
    "everything in one step": {"max_num_batched_tokens": 4096},
    "one sequence at a time": {"max_num_seqs": 1},
    "two at a time": {"max_num_seqs": 2},
    "chunks of 7 tokens": {"prefill_chunk_size": 7},
    "chunk of one token": {"prefill_chunk_size": 1},
    "a budget of 16 tokens": {"max_num_batched_tokens": 16},
    "pages of one token": {"block_size": 1},
    "pages of 64 tokens": {"block_size": 64},
    "a pool so small that sequences are preempted": {"kv_cache_memory_bytes": 10 * 16 * 2 * 2 * 2 * 16 * 4},
    "an ITL target that every step exceeds": {"itl_target": 1e-9},
    "an ITL target that some steps exceed": {"itl_target": 0.002},
    "a window longer than everything": {"kv_window": 512},
    "speculation, depth 1": {"num_speculative_tokens": 1},
    "speculation, depth 4": {"num_speculative_tokens": 4},
    "speculation with a budget that cuts guesses": {"num_speculative_tokens": 4, "max_num_batched_tokens": 16},
    "speculation that steers itself": {"num_speculative_tokens": 4, "speculation_adaptive": True},
    "speculation in a small pool": {"num_speculative_tokens": 3, "kv_cache_memory_bytes": 120_000},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_greedy_tokens_equal_transformers(
    settings: dict[str, Any], tiny_llama: Path, tiny_draft: Path, expected: list[list[int]]
) -> None:
    engine = load_engine(EngineConfig(model=str(tiny_llama), draft_model=str(tiny_draft), **settings))
    assert run(engine, GREEDY, prompts()) == expected


def test_small_pool_really_preempts(tiny_llama: Path) -> None:
    settings = SETTINGS["a pool so small that sequences are preempted"]
    engine = load_engine(EngineConfig(model=str(tiny_llama), **settings))
    run(engine, GREEDY, prompts())
    assert engine.stats().preemptions > 0


@pytest.mark.parametrize("policy", ["fcfs", "priority", "fair"])
def test_a_scheduling_policy_changes_no_token(policy: str, tiny_llama: Path, expected: list[list[int]]) -> None:
    settings = {"kv_cache_memory_bytes": 14 * 16 * 2 * 2 * 2 * 16 * 4, "prefill_chunk_size": 16}
    engine = load_engine(EngineConfig(model=str(tiny_llama), scheduling_policy=policy, **settings))
    for index, prompt in enumerate(prompts()):
        engine.add(str(index), prompt, GREEDY, priority=-index, tenant=str(index % 2))
    tokens: list[list[int]] = [[] for _ in expected]
    while engine.has_work():
        for output in engine.step():
            tokens[int(output.request_id)] += output.tokens
    assert tokens == expected
    assert engine.stats().preemptions > 0


def test_a_draft_equal_to_the_target_is_always_accepted(tiny_llama: Path, expected: list[list[int]]) -> None:
    engine = load_engine(EngineConfig(model=str(tiny_llama), draft_model=str(tiny_llama), num_speculative_tokens=3))
    assert run(engine, GREEDY, prompts()) == expected
    stats = engine.stats()
    assert stats.draft_tokens > 0
    assert stats.accepted_tokens == stats.draft_tokens


def test_logprobs_equal_transformers_within_1e_4(tiny_llama: Path, oracle: LlamaForCausalLM) -> None:
    prompt, forced = prompts()[3], tuple(prompts()[4][:30])
    with torch.inference_mode():
        logits = oracle(torch.tensor([prompt + list(forced)])).logits[0, len(prompt) - 1 : -1]
    wanted = logits.log_softmax(-1).gather(1, torch.tensor(forced).unsqueeze(1)).squeeze(1)
    engine = load_engine(EngineConfig(model=str(tiny_llama), prefill_chunk_size=11))
    [outputs] = collect(engine, [(prompt, SamplingParams(max_tokens=30, forced=forced, logprobs=True))])
    scored = [x for output in outputs for x in output.logprobs]
    tops = [top[0][0] for output in outputs for top in output.top_logprobs]
    assert [t for output in outputs for t in output.tokens] == list(forced)
    assert torch.allclose(torch.tensor(scored), wanted, atol=1e-4)
    assert tops == logits.argmax(-1).tolist()


def test_reconfigured_equals_fresh(tiny_llama: Path, tiny_draft: Path) -> None:
    base = EngineConfig(model=str(tiny_llama), draft_model=str(tiny_draft))
    warm = load_engine(base)
    run(warm, GREEDY, prompts())
    for changes in ({"kv_cache_dtype": "int8"}, {"kv_window": 24, "block_size": 4}, {"num_speculative_tokens": 2}):
        config = warm.config.updated(changes)
        warm.reconfigure(config)
        assert run(warm, GREEDY, prompts()) == run(load_engine(config), GREEDY, prompts()), changes


def test_reconfiguration_refused_in_flight(tiny_llama: Path) -> None:
    engine = load_engine(EngineConfig(model=str(tiny_llama)))
    engine.add("a", [5, 6], GREEDY)
    with pytest.raises(ValueError, match="1 requests are in flight"):
        engine.reconfigure(engine.config.updated({"max_num_seqs": 2}))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "fp8_e4m3", "int8", "int4"])
@pytest.mark.parametrize("chunk", [5, 64])
def test_quantised_reads_do_not_depend_on_chunks(dtype: str, chunk: int, tiny_llama: Path) -> None:
    whole = load_engine(EngineConfig(model=str(tiny_llama), kv_cache_dtype=dtype, max_num_batched_tokens=4096))
    cut = load_engine(EngineConfig(model=str(tiny_llama), kv_cache_dtype=dtype, prefill_chunk_size=chunk))
    params = SamplingParams(max_tokens=20, forced=tuple(range(10, 30)), logprobs=True)
    [first], [second] = (collect(engine, [(prompts()[4], params)]) for engine in (whole, cut))
    assert torch.allclose(
        torch.tensor([x for o in first for x in o.logprobs]),
        torch.tensor([x for o in second for x in o.logprobs]),
        atol=1e-4,
    )


def test_scores_tell_cache_dtypes_apart(tiny_llama: Path) -> None:
    """Scores read the stored cache: were they computed from fresh keys, all dtypes would give the same number."""
    params = SamplingParams(max_tokens=20, forced=tuple(range(10, 30)), logprobs=True)
    found = {}
    for dtype in ("float32", "bfloat16", "float16", "fp8_e4m3", "int8", "int4"):
        engine = load_engine(EngineConfig(model=str(tiny_llama), kv_cache_dtype=dtype))
        [outputs] = collect(engine, [(prompts()[4], params)])
        found[dtype] = sum(x for o in outputs for x in o.logprobs)
    assert len(set(found.values())) == len(found)
    assert all(abs(value - found["float32"]) < 1.0 for value in found.values())


def test_memory_buys_more_pages_with_a_smaller_dtype(tiny_llama: Path) -> None:
    pages = {
        dtype: load_engine(EngineConfig(model=str(tiny_llama), kv_cache_dtype=dtype)).stats().blocks_total
        for dtype in ("float32", "bfloat16", "int8")
    }
    # float32: 16 * 4 bytes a head; int8: 16 bytes and a 4-byte scale.
    assert pages["bfloat16"] == 2 * pages["float32"]
    assert pages["int8"] == pytest.approx(pages["float32"] * 64 / 20, abs=1)


def test_requests_without_a_seed_are_samples_of_their_own(tiny_llama: Path) -> None:
    sampled = SamplingParams(max_tokens=OUTPUT, temperature=1.0, ignore_eos=True)
    seeded = SamplingParams(max_tokens=OUTPUT, temperature=1.0, ignore_eos=True, seed=5)
    prompt = prompts()[0]
    engine = load_engine(EngineConfig(model=str(tiny_llama)))
    first, second, third, fourth = (
        [t for output in outputs for t in output.tokens]
        for outputs in collect(engine, [(prompt, sampled), (prompt, sampled), (prompt, seeded), (prompt, seeded)])
    )
    assert first != second
    assert third == fourth


def test_a_temperature_near_zero_is_greedy(tiny_llama: Path, expected: list[list[int]]) -> None:
    engine = load_engine(EngineConfig(model=str(tiny_llama)))
    params = SamplingParams(max_tokens=OUTPUT, temperature=1e-50, ignore_eos=True)
    assert run(engine, params, prompts()) == expected


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"prefill_chunk_size": 5}, id="the draft catches up in small pieces"),
        pytest.param({"kv_cache_memory_bytes": 120_000}, id="preempted"),
        pytest.param({"kv_window": 13, "kv_sink_tokens": 3, "block_size": 4}, id="what the draft lacks was evicted"),
        pytest.param({"kv_window": 1, "kv_sink_tokens": 0, "block_size": 2}, id="everything was evicted"),
        pytest.param({"enable_prefix_caching": True, "block_size": 4}, id="pages are shared"),
    ],
)
def test_tokens_do_not_depend_on_the_depth_of_a_step(
    settings: dict[str, Any], tiny_llama: Path, tiny_draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long stretches without guesses, then some: the draft's cache falls behind and must not matter."""
    depths = random.Random(3)
    monkeypatch.setattr(SpeculationMeter, "choose_depth", lambda *_: depths.choice([0, 0, 0, 0, 0, 0, 1, 2, 4, 4]))
    models = {"model": str(tiny_llama), "draft_model": str(tiny_draft)}
    plain = load_engine(EngineConfig(**models, **settings))
    engine = load_engine(EngineConfig(**models, num_speculative_tokens=4, **settings))
    for _ in range(2):
        assert run(engine, GREEDY, prompts()) == run(plain, GREEDY, prompts())
    assert engine.stats().draft_tokens > 0
