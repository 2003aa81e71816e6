"""Windows with sinks against a dense reference that sees exactly the same tokens at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from engine.config import EngineConfig
from engine.layers.attention import AttentionInput, layout
from engine.llm_engine import LLMEngine
from engine.model_runner import load_engine
from engine.sequence import SamplingParams

LENGTH = 40


def prompt(length: int = 70) -> list[int]:
    return torch.randint(4, 384, (length,), generator=torch.Generator().manual_seed(11)).tolist()


def dense_greedy(model: LlamaForCausalLM, ids: list[int], window: int, sinks: int) -> list[int]:
    """Greedy tokens by transformers with an explicit mask: key k is seen from q when k <= q and (k < sinks or
    k > q - window)."""
    ids = list(ids)
    for _ in range(LENGTH):
        q = torch.arange(len(ids)).unsqueeze(1)
        k = torch.arange(len(ids)).unsqueeze(0)
        visible = (k <= q) & ((k < sinks) | (k > q - window))
        mask = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))[None, None]
        with torch.inference_mode():
            logits = model(torch.tensor([ids]), attention_mask=mask, use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[-LENGTH:]


def generate(engine: LLMEngine, ids: list[int]) -> list[int]:
    engine.add("a", ids, SamplingParams(max_tokens=LENGTH, ignore_eos=True))
    tokens: list[int] = []
    while engine.has_work():
        tokens += [t for output in engine.step() for t in output.tokens]
    return tokens


@pytest.mark.parametrize(
    ("window", "sinks", "block_size", "chunk", "depth"),
    [
        pytest.param(16, 4, 4, None, 0, id="window of whole pages"),
        pytest.param(13, 3, 4, None, 0, id="window and sinks that end inside pages"),
        pytest.param(13, 0, 8, 5, 0, id="no sinks, chunks shorter than the window"),
        pytest.param(9, 5, 16, 32, 0, id="chunks and pages longer than the window"),
        pytest.param(13, 3, 4, None, 3, id="with speculation"),
        pytest.param(1, 0, 4, None, 0, id="a window of the token itself"),
    ],
)
def test_window_equals_the_dense_reference(
    window: int, sinks: int, block_size: int, chunk: int | None, depth: int, tiny_llama: Path, tiny_draft: Path
) -> None:
    config = EngineConfig(
        model=str(tiny_llama),
        draft_model=str(tiny_draft),
        kv_window=window,
        kv_sink_tokens=sinks,
        block_size=block_size,
        prefill_chunk_size=chunk,
        num_speculative_tokens=depth,
    )
    oracle = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    assert generate(load_engine(config), prompt()) == dense_greedy(oracle, prompt(), window, sinks)


def test_pages_outside_the_window_are_freed(tiny_llama: Path) -> None:
    engine = load_engine(EngineConfig(model=str(tiny_llama), kv_window=16, kv_sink_tokens=4, block_size=4))
    engine.add("a", prompt(200), SamplingParams(max_tokens=100, ignore_eos=True))
    held = []
    while engine.has_work():
        engine.step()
        stats = engine.stats()
        held.append(stats.blocks_total - stats.blocks_free)
    # One page of sinks, 16 tokens of window that may straddle a fifth page, and the page being filled.
    assert max(held[1:]) <= 1 + 5 + 1
    assert stats.evicted_blocks > 60


def test_a_window_admits_sequences_that_did_not_fit(tiny_llama: Path) -> None:
    page = 16 * 2 * 2 * 2 * 16 * 4
    config = EngineConfig(model=str(tiny_llama), kv_cache_memory_bytes=10 * page, prefill_chunk_size=16)
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    engine = load_engine(config)
    with pytest.raises(ValueError, match="needs 14 pages of 16 tokens, the KV cache has 10"):
        engine.add("a", prompt(200), params)
    engine.reconfigure(config.updated({"kv_window": 32}))
    engine.add("a", prompt(200), params)
    while engine.has_work():
        engine.step()
    assert engine.stats().generation_tokens == 20


def test_a_smaller_dtype_runs_more_sequences_at_once(tiny_llama: Path) -> None:
    def most_running(dtype: str) -> int:
        engine = load_engine(EngineConfig(model=str(tiny_llama), kv_cache_dtype=dtype, kv_cache_memory_bytes=160_000))
        for index in range(12):
            engine.add(str(index), prompt(60), SamplingParams(max_tokens=8, ignore_eos=True))
        most = 0
        while engine.has_work():
            engine.step()
            most = max(most, engine.stats().running)
        return most

    assert most_running("int8") > most_running("bfloat16") > most_running("float32")


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "int8", "int4"])
def test_quantised_windows_do_not_depend_on_chunks(dtype: str, tiny_llama: Path) -> None:
    params = SamplingParams(max_tokens=20, forced=tuple(range(10, 30)), logprobs=True)
    found = []
    for chunk in (None, 5):
        config = EngineConfig(
            model=str(tiny_llama), kv_cache_dtype=dtype, kv_window=24, block_size=4, prefill_chunk_size=chunk
        )
        engine = load_engine(config)
        engine.add("a", prompt(), params)
        found.append([])
        while engine.has_work():
            found[-1] += [x for output in engine.step() for x in output.logprobs]
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_attention_reads_no_more_pages_as_generation_goes_on(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counting_layout(*arguments: Any) -> AttentionInput:
        batch = layout(*arguments)
        read.append(sum(len(group.pages) for group in batch.groups))
        return batch

    monkeypatch.setattr("engine.kernels.torch_operations.layout", counting_layout)
    engine = load_engine(EngineConfig(model=str(tiny_llama), kv_window=16, kv_sink_tokens=4, block_size=4))
    engine.add("a", prompt(30), SamplingParams(max_tokens=300, ignore_eos=True))
    while engine.has_work():
        engine.step()
    decodes = read[1:]
    # One page of sinks, and a window that touches four pages or, straddling, five.
    assert set(decodes[:8]) == set(decodes[-8:]) == {5, 6}
