"""The engine on its kernels: the same tokens as on torch, and a clear word where they cannot run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny_models import random_ids, write_model

from engine.config import EngineConfig
from engine.model_runner import ModelRunner, load_engine
from engine.sequence import SamplingParams


def generate(config: EngineConfig, prompts: list[list[int]], params: SamplingParams) -> dict[str, list[int]]:
    engine = load_engine(config)
    for index, prompt in enumerate(prompts):
        engine.add(str(index), prompt, params)
    found: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
    while engine.has_work():
        for result in engine.step():
            found[result.request_id] += result.tokens
    return found


def greedy(config: EngineConfig, prompts: list[list[int]], output: int) -> dict[str, list[int]]:
    return generate(config, prompts, SamplingParams(max_tokens=output, ignore_eos=True))


CASES = {
    "chunks beside decodes": {"max_num_batched_tokens": 16},
    "int8 pages and a window with sinks": {"kv_cache_dtype": "int8", "kv_window": 6, "block_size": 8},
    "int4 pages and weights": {"kv_cache_dtype": "int4", "weight_dtype": "int4", "weight_group_size": 32},
    "heavy hitters": {"kv_window": 4, "kv_heavy_tokens": 4, "block_size": 4},
    "verify rows": {"num_speculative_tokens": 2, "speculative_method": "ngram"},
}


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_are_those_of_the_torch_path(name: str, tiny_draft: Path) -> None:
    config = EngineConfig(model=str(tiny_draft), device="cpu").updated(CASES[name])
    prompts = [random_ids(13, seed=1), random_ids(3, seed=2) * 2]
    wanted = greedy(config, prompts, 3)
    assert all(len(tokens) == 3 for tokens in wanted.values())
    assert greedy(config.updated({"attention_backend": "triton"}), prompts, 3) == wanted


def test_sampled_tokens_are_those_of_the_torch_path(tiny_draft: Path) -> None:
    params = SamplingParams(max_tokens=3, temperature=0.9, top_k=40, top_p=0.95, seed=3, ignore_eos=True)
    config = EngineConfig(model=str(tiny_draft), device="cpu")
    wanted = generate(config, [random_ids(4, seed=1)], params)
    assert generate(config.updated({"attention_backend": "triton"}), [random_ids(4, seed=1)], params) == wanted


def test_tokens_with_a_step_in_flight_are_those_without(tiny_draft: Path) -> None:
    """The sampling kernel's tokens go from one launch to the next as they are."""
    config = EngineConfig(model=str(tiny_draft), device="cpu", attention_backend="triton", prefill_chunk_size=3)
    prompts = [random_ids(4, seed=1), random_ids(7, seed=2)]
    for params in (
        SamplingParams(max_tokens=3, ignore_eos=True),
        SamplingParams(max_tokens=3, temperature=0.9, top_k=40, top_p=0.95, seed=3, ignore_eos=True),
    ):
        waited, ahead = (generate(config.updated({"async_scheduling": on}), prompts, params) for on in (False, True))
        assert ahead == waited and all(len(tokens) == 3 for tokens in ahead.values())


def test_with_norms_of_query_and_key_heads(tmp_path: Path) -> None:
    model = write_model(tmp_path, family="qwen3", layers=1, hidden=32, head_dim=16)
    config = EngineConfig(model=str(model), device="cpu")
    prompts = [random_ids(5, seed=1)]
    assert greedy(config.updated({"attention_backend": "triton"}), prompts, 3) == greedy(config, prompts, 3)


def test_kernels_on_a_cpu_are_refused_in_one_line(tiny_draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.kernels.compute.INTERPRETED", False)
    config = EngineConfig(model=str(tiny_draft), device="cpu", attention_backend="triton")
    with pytest.raises(ValueError, match="^attention_backend: triton needs a GPU .*; use torch or auto$"):
        load_engine(config)


def test_kernels_without_triton_are_refused_in_one_line(tiny_draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "engine.kernels.triton_operations", None)
    config = EngineConfig(model=str(tiny_draft), device="cpu", attention_backend="triton")
    with pytest.raises(ValueError, match="^attention_backend: triton was asked for, .* is not installed; use torch$"):
        load_engine(config)


def test_float8_pages_on_an_older_gpu_are_refused(tiny_draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(model=str(tiny_draft), device="cpu")
    runner = ModelRunner(config)
    monkeypatch.setattr(runner, "_device", torch.device("cuda"))
    monkeypatch.setattr(runner, "_backend", "triton")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match="^kv_cache_dtype: fp8_e4m3 in kernels needs .*; use int8$"):
        runner.reconfigure(config.updated({"kv_cache_dtype": "fp8_e4m3"}))
