"""The checks that run on a GPU, rehearsed in the interpreter at small sizes; and what happens where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from paged import CPU

from benchmarks import gpu_bench, gpu_check, gpu_results, gpu_tune
from benchmarks.gpu_check import Attention
from engine.kernels import attention, rms_norm
from engine.models.config import ModelConfig

SMALL = Attention("int8", torch.float32, [(1, 20), (5, 18)], heads=(4, 2), head_dim=16, pages=8, weigh=True)


def test_attention_is_within_its_bound() -> None:
    assert gpu_check.check_attention(SMALL, CPU, seed=1) <= gpu_check.TOLERANCE[torch.float32]


def test_a_wrong_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LOG2_E", 1.0)
    assert gpu_check.check_attention(SMALL, CPU, seed=1) > gpu_check.TOLERANCE[torch.float32]


def test_what_a_kernel_leaves_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rms_norm, "add_rms_norm", lambda x, *rest: (x, torch.empty_like(x)))
    errors = gpu_check.check_small(torch.float32, CPU, seed=1, rows=1, width=64)
    assert errors["norm"] == float("inf")


def test_the_other_checks_pass() -> None:
    bound = gpu_check.TOLERANCE[torch.float32]
    assert gpu_check.check_rotate_store("float32", torch.float32, CPU, seed=1, tokens=2) <= bound
    assert max(gpu_check.check_small(torch.float32, CPU, seed=1, rows=1, width=64).values()) <= bound
    assert gpu_check.check_sampling(CPU, seed=1, rows=2, vocab=100) == 0.0
    assert gpu_check.check_overlap("cpu", "float32", requests=4, output=6) == 0.0


@pytest.mark.parametrize(
    ("command", "main"), [("gpu-check", gpu_check.main), ("gpu-bench", gpu_bench.main), ("gpu-tune", gpu_tune.main)]
)
def test_without_a_gpu_one_line_and_status_2(
    command: str, main: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{command}: torch sees no NVIDIA GPU here; nothing was run\n"


def test_the_usual_load_is_the_published_one() -> None:
    load = gpu_bench.usual_load()
    assert (len(load), sum(output for _, output in load)) == (256, 133_966)


def test_the_roofline_reads_weights_each_step_and_keys_each_token() -> None:
    shape = ModelConfig.from_json(gpu_bench.SHAPES["Llama-3-8B"], "here")
    per_token = 131_072
    assert gpu_bench.bytes_to_read(shape, [([0] * 10, 2), ([0] * 5, 1)], weights=7) == 14 + (11 + 12 + 6) * per_token


def test_an_engine_row_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    small = gpu_bench.SHAPES["Qwen3-0.6B"] | {
        "vocab_size": 99, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16,
    }  # fmt: skip
    monkeypatch.setitem(gpu_bench.SHAPES, "small", small)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    row = gpu_bench.engine_row("small", [([1, 2, 3], 4)], 1e9, device="cpu", kv_cache_memory_bytes=2**20)
    assert row["tokens/s"] > 0 and row["of roofline"] > 0


def test_a_step_of_a_benchmark_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_bench, "KV_HEADS", 1)
    monkeypatch.setattr(gpu_bench, "HEAD_DIM", 16)
    for dtype in gpu_bench.TARGETS:
        keys, values, batch = gpu_bench.decode_step(dtype, 2, 20, CPU)
        assert attention.paged_attention(torch.ones(2, 2, 16), keys, values, batch, 0.25).isfinite().all()
    blocks = next(gpu_tune.candidates(decode=True))
    assert (blocks.tile, blocks.splits, blocks.rows) == (16, 1, 16)


def test_results_carry_the_environment(tmp_path: Path) -> None:
    table = gpu_results.write("gpu-check", [{"check": "a", "error": 0.5, "passed": False}], tmp_path)
    assert "| a | 0.5 | False |" in table.read_text()
    stored = json.loads(table.with_suffix(".json").read_text())
    assert stored["environment"]["packages"]["torch"] and stored["rows"][0]["check"] == "a"
