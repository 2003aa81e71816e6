"""The checks that run on a GPU, rehearsed in the interpreter at small sizes; and what happens where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from paged import CPU

from benchmarks import gpu_check, gpu_results
from benchmarks.gpu_check import Attention
from engine.kernels import attention, rms_norm

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


def test_without_a_gpu_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "gpu-check: torch sees no NVIDIA GPU here; nothing was run\n"


def test_results_carry_the_environment(tmp_path: Path) -> None:
    table = gpu_results.write("gpu-check", [{"check": "a", "error": 0.5, "passed": False}], tmp_path)
    assert "| a | 0.5 | False |" in table.read_text()
    stored = json.loads(table.with_suffix(".json").read_text())
    assert stored["environment"]["packages"]["torch"] and stored["rows"][0]["check"] == "a"
