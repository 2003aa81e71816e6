"""The planner's bytes are those that the engine takes; what does not fit gets one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import edit_config
from transformers import LlamaForCausalLM

from engine.config import EngineConfig
from engine.memory import available_host_bytes, plan_memory
from engine.model_runner import load_engine
from engine.models.config import read_model_config
from engine.sequence import SamplingParams


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "fp8_e4m3", "int8", "int4"])
@pytest.mark.parametrize("depth", [0, 2])
def test_the_engine_takes_the_pages_that_were_planned(
    dtype: str, depth: int, tiny_llama: Path, tiny_draft: Path
) -> None:
    config = EngineConfig(
        model=str(tiny_llama),
        draft_model=str(tiny_draft),
        kv_cache_dtype=dtype,
        num_speculative_tokens=depth,
        kv_cache_memory_bytes=3_000_000,
    )
    plan = plan_memory(config)
    assert plan.pool.pages == load_engine(config).stats().blocks_total
    assert 3_000_000 - plan.pool.page_bytes < plan.pool.pool_bytes <= 3_000_000
    assert plan.tokens == 16 * plan.pool.pages
    bits = {"auto": 32, "bfloat16": 16, "fp8_e4m3": 8, "int8": 8, "int4": 4}[dtype]
    scale = 4 if bits <= 8 else 0
    # 16 tokens, keys and values of 2 layers with 2 heads of 16, and of 1 draft layer with 2 heads of 8.
    draft = 16 * 2 * 2 * (8 * bits // 8 + scale) if depth else 0
    assert plan.pool.page_bytes == 16 * 2 * 2 * 2 * (16 * bits // 8 + scale) + draft


def test_weights_are_counted(tiny_llama: Path, tiny_draft: Path) -> None:
    target, draft = (
        sum(p.numel() for p in LlamaForCausalLM.from_pretrained(path).parameters()) for path in (tiny_llama, tiny_draft)
    )
    config = EngineConfig(model=str(tiny_llama), draft_model=str(tiny_draft))
    plan = plan_memory(config)
    assert (plan.weight_bytes, plan.draft_weight_bytes) == (4 * target, 4 * draft)
    half = plan_memory(config.updated({"dtype": "bfloat16"}))
    shape = read_model_config(tiny_draft)
    blocked_head = 2 * shape.vocab_size * shape.hidden  # the draft's is tied to its embedding
    assert (half.weight_bytes, half.draft_weight_bytes) == (2 * target, 2 * draft + blocked_head)
    assert plan_memory(config.updated({"dtype": "bfloat16", "device": "cuda"})).draft_weight_bytes == 2 * draft
    plan.check(plan.total_bytes)
    with pytest.raises(ValueError, match=rf"^memory: needs {plan.total_bytes} bytes .* there are 1000$"):
        plan.check(1000)


@pytest.mark.parametrize(
    ("changes", "sequences"),
    [
        pytest.param({}, 3, id="whole sequences of 512 tokens in 100 pages"),
        pytest.param({"max_model_len": 100}, 14, id="shorter sequences"),
        pytest.param({"kv_window": 32, "prefill_chunk_size": 16}, 20, id="a window"),
    ],
)
def test_sequences_that_fit(changes: dict[str, Any], sequences: int, tiny_llama: Path) -> None:
    page = 16 * 2 * 2 * 2 * 16 * 4
    config = EngineConfig(model=str(tiny_llama), kv_cache_memory_bytes=100 * page, **changes)
    assert plan_memory(config).sequences == sequences


def test_more_memory_than_there_is_gets_one_line(tiny_llama: Path) -> None:
    needs = 10**15 // 4096 * 4096
    message = rf"^kv_cache_memory_bytes: the pages need {needs} bytes, there are \d+$"
    config = EngineConfig(model=str(tiny_llama), kv_cache_memory_bytes=10**6)
    with pytest.raises(ValueError, match=message):
        load_engine(config.updated({"kv_cache_memory_bytes": 10**15, "block_size": 8}))
    engine = load_engine(config)
    with pytest.raises(ValueError, match=message):
        engine.reconfigure(config.updated({"kv_cache_memory_bytes": 10**15, "block_size": 8}))
    engine.add("a", [5, 6], SamplingParams(max_tokens=3, ignore_eos=True))
    while engine.has_work():
        engine.step()
    assert engine.stats().generation_tokens == 3


def test_weights_that_do_not_fit_get_one_line_before_any_is_made(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    edit_config(tmp_path, vocab_size=10**12)
    config = EngineConfig(model=str(tmp_path), load_format="dummy")
    with pytest.raises(ValueError, match=r"^model: the weights need \d+ bytes, there are \d+; see weight_dtype$"):
        load_engine(config)


def test_available_memory_is_of_this_machine() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < available_host_bytes() <= total


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        pytest.param("config.json", None, "config.json: cannot be read", id="no config"),
        pytest.param("config.json", b"{", "config.json: not JSON: line 1", id="config is not JSON"),
        pytest.param("config.json", b"{}", "config.json: model_type: expected", id="config lacks a key"),
    ],
)
def test_checkpoints_that_cannot_be_planned(
    file: str, content: bytes | None, message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    plan_memory(EngineConfig(model=str(tmp_path)))
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        plan_memory(EngineConfig(model=str(tmp_path)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
