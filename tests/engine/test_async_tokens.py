"""Overlap = not: the engine on real weights says the same with a step in flight as without, in float32 on the CPU."""

from __future__ import annotations

import asyncio
import functools
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from serving import running
from test_llm_engine import GREEDY, OUTPUT, SETTINGS, prompts
from test_planted_faults import MINI
from tiny_models import random_ids

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.model_runner import load_engine
from engine.sequence import SamplingParams

SAMPLED = [
    SamplingParams(max_tokens=OUTPUT, temperature=0.9, ignore_eos=True),
    SamplingParams(max_tokens=OUTPUT, temperature=1.3, top_k=40, top_p=0.8, min_p=0.01, seed=9, ignore_eos=True),
    GREEDY,
]
PENALISED = SamplingParams(max_tokens=9, ignore_eos=True, repetition_penalty=1.3, presence_penalty=0.5)
ASKING = SamplingParams(max_tokens=OUTPUT, temperature=0.7, ignore_eos=True, logprobs=True, top_logprobs=2)
SCORED = SamplingParams(max_tokens=11, forced=tuple(range(10, 21)), logprobs=True)
FEW_PAGES = SETTINGS["a pool so small that sequences are preempted"]
SOME_PAGES = {"kv_cache_memory_bytes": 14 * 16 * 2 * 2 * 2 * 16 * 4, "prefill_chunk_size": 16}


def said(engine: LLMEngine, params: list[SamplingParams], ids: list[list[int]], gap: int = 0) -> list[Any]:
    """Tokens, log-probabilities, those of likely tokens and finish reason of each prompt; one joins every `gap` steps,
    parameters in turn."""
    found: list[Any] = [([], [], [], []) for _ in ids]
    steps = added = 0
    while added < len(ids) or engine.has_work():
        while added < len(ids) and steps >= added * gap:
            engine.add(str(added), ids[added], params[added % len(params)], -added, str(added % 2))
            added += 1
        for output in engine.step() if engine.has_work() else []:
            tokens, logprobs, tops, reasons = found[int(output.request_id)]
            tokens += output.tokens
            logprobs += output.logprobs
            tops += output.top_logprobs
            reasons += [output.finish_reason] if output.finish_reason else []
        steps += 1
    stats = engine.stats()
    assert stats.blocks_free == stats.blocks_total and (stats.running, stats.waiting) == (0, 0)
    return found


def both(config: EngineConfig, params: list[SamplingParams], ids: list[list[int]], gap: int = 0) -> list[LLMEngine]:
    """The engine without and with steps in flight, after they said the same."""
    engines = [load_engine(config.updated({"async_scheduling": overlap})) for overlap in (False, True)]
    waited, ahead = (said(engine, params, ids, gap) for engine in engines)
    assert ahead == waited
    return engines


MORE: dict[str, dict[str, Any]] = {
    **{name: values for name, values in SETTINGS.items() if "speculation" not in name or "depth 4" in name},
    "a window": {"kv_window": 24, "kv_sink_tokens": 3, "block_size": 4},
    "a window and chunks, in a small pool": {
        "kv_window": 20, "prefill_chunk_size": 9, "block_size": 4, "kv_cache_memory_bytes": 60_000,
    },
    "prefix caching": {"enable_prefix_caching": True, "block_size": 4},
    "prefix caching in a small pool": {"enable_prefix_caching": True, "block_size": 4, **FEW_PAGES},
    "heavy hitters": {"kv_window": 8, "kv_heavy_tokens": 8, "block_size": 4},
    "priority in a small pool": {"scheduling_policy": "priority", **SOME_PAGES},
    "fair in a small pool": {"scheduling_policy": "fair", **SOME_PAGES},
    "int8 pages": {"kv_cache_dtype": "int8"},
}  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), MORE.items(), ids=MORE.keys())
def test_greedy_and_sampled_tokens(name: str, settings: dict[str, Any], tiny_llama: Path, tiny_draft: Path) -> None:
    config = EngineConfig(model=str(tiny_llama), draft_model=str(tiny_draft), **settings)
    engines = both(config, SAMPLED, [*prompts(), *prompts(3)], gap=1)
    if "pool" in name and "window" not in name:
        assert all(engine.stats().preemptions for engine in engines)
    if "enable_prefix_caching" in settings:
        assert all(engine.stats().prefix_cache_hits for engine in engines)
    if "itl_target" not in settings:  # where chunks are cut by the clock, steps differ from run to run
        stats = [engine.stats() for engine in engines]
        assert stats[0] == stats[1]


def test_requests_that_need_the_host_among_others(tiny_llama: Path) -> None:
    both(EngineConfig(model=str(tiny_llama)), [SAMPLED[1], PENALISED, SCORED, GREEDY], [*prompts(), *prompts()], gap=3)


def test_log_probabilities_travel_with_the_tokens(tiny_llama: Path) -> None:
    """Of prompts in chunks and decodes, of requests beside others that ask for none."""
    config = EngineConfig(model=str(tiny_llama), max_num_batched_tokens=24)
    engine = both(config, [ASKING, GREEDY, SAMPLED[1]], [*prompts(), *prompts(3)], gap=1)[1]
    engine.add("a", [5, 6], ASKING)
    assert engine.step() == [] and len(engine.step()[0].top_logprobs) == 1


def test_a_batch_that_waits_only_for_one_of_its_requests(tiny_llama: Path) -> None:
    """Few of many: steps in flight and steps that wait take turns."""
    params = [GREEDY, SAMPLED[0], GREEDY, SAMPLED[1], PENALISED]
    both(EngineConfig(model=str(tiny_llama), max_num_seqs=3), params, [*prompts(), *prompts(4)], gap=1)


def test_stop_tokens_in_the_middle(tiny_llama: Path) -> None:
    free = said(load_engine(EngineConfig(model=str(tiny_llama))), [GREEDY], prompts())
    stops = tuple({tokens[7] for tokens, *_ in free})
    params = SamplingParams(max_tokens=OUTPUT, stop_token_ids=stops)
    config = EngineConfig(model=str(tiny_llama), enable_prefix_caching=True, block_size=4)
    engine = both(config, [params, SAMPLED[1]], prompts())[1]
    found = said(engine, [params], prompts())
    assert all(reasons == ["stop"] and len(tokens) <= 8 for tokens, *_, reasons in found)
    assert engine.stats().prefix_cache_hits, "and the pages of stopped ones hold what they say"


def test_aborts_in_flight_change_nobody_elses_tokens(tiny_llama: Path) -> None:
    config = EngineConfig(model=str(tiny_llama), async_scheduling=True, **FEW_PAGES)
    expected = said(load_engine(EngineConfig(model=str(tiny_llama))), [SAMPLED[1]], prompts())
    engine = load_engine(config)
    for index, prompt in enumerate(prompts()):
        engine.add(str(index), prompt, SAMPLED[1])
    tokens: list[list[int]] = [[] for _ in expected]
    for step in range(1000):
        if step in (3, 9):
            engine.abort(str(step // 3))  # requests 1 and 3
        if not engine.has_work():
            break
        for output in engine.step():
            tokens[int(output.request_id)] += output.tokens
    kept = [0, 2, 4, 5]
    assert [tokens[index] for index in kept] == [expected[index][0] for index in kept]
    assert all(len(tokens[index]) < OUTPUT for index in (1, 3))
    assert engine.stats().blocks_free == engine.stats().blocks_total


@pytest.mark.parametrize("settings", [{}, {"kv_window": 32, "prefill_chunk_size": 16}], ids=["all", "window, chunks"])
def test_on_the_bundled_model(settings: dict[str, Any]) -> None:
    config = EngineConfig(model=str(MINI), device="cpu", dtype="float32", **settings)
    both(config, SAMPLED, [[token + 12 for token in random_ids(20 + 9 * n, seed=n)] for n in range(6)], gap=2)


def test_off_on_a_cpu_unless_it_is_asked_for(tiny_llama: Path) -> None:
    for asked, delivered in ((None, 1), (False, 1), (True, 0)):
        engine = load_engine(EngineConfig(model=str(tiny_llama), device="cpu", async_scheduling=asked))
        engine.add("a", [5, 6], GREEDY)
        assert len(engine.step()) == delivered


async def test_through_the_server_with_a_client_that_leaves(tiny_llama: Path) -> None:
    answers = []
    for overlap in (False, True):
        settings = {"model": str(tiny_llama), "async_scheduling": overlap, "max_num_seqs": 3}
        async with AsyncExitStack() as stack:
            engine = stack.enter_context(running(settings))
            client = await stack.enter_async_context(engine.client())
            ask = functools.partial(client.completions.create, model=tiny_llama.name, extra_body={"ignore_eos": True})
            leaves = await ask(prompt=prompts()[0], max_tokens=400, stream=True)
            await anext(aiter(leaves))
            await leaves.close()
            asked = [ask(prompt=prompt, max_tokens=20, temperature=0.9, seed=5) for prompt in prompts()]
            answers.append([answer.choices[0].text for answer in await asyncio.gather(*asked)])
    assert answers[0] == answers[1]
