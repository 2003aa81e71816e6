"""The checks that run on a GPU, rehearsed in the interpreter at small sizes; and what happens where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from paged import CPU

from benchmarks import gpu_check, gpu_results, gpu_tune
from benchmarks.gpu import engine_tokens
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


def test_the_checks_of_the_engine_pass_on_a_cpu() -> None:
    found = list(engine_tokens.checks("cpu", requests=4, output=6))
    assert len(found) == 8 and all(share <= bound for _, share, bound in found)


def test_another_answer_is_seen() -> None:
    int4 = {"device": "cpu", "weight_dtype": "int4"}
    assert engine_tokens.differing({"device": "cpu"}, int4, sampled=False, requests=4, output=24) > 0


@pytest.mark.parametrize(("command", "main"), [("gpu-check", gpu_check.main), ("gpu-tune", gpu_tune.main)])
def test_without_a_gpu_one_line_and_status_2(
    command: str, main: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{command}: torch sees no NVIDIA GPU here; nothing was run\n"


def test_block_sizes_that_are_tried() -> None:
    blocks = next(gpu_tune.candidates(decode=True))
    assert (blocks.tile, blocks.splits, blocks.rows) == (16, 1, 16)


def test_results_carry_the_environment(tmp_path: Path) -> None:
    table = gpu_results.write("gpu-check", [{"check": "a", "error": 0.5, "passed": False}], tmp_path)
    assert "| a | 0.5 | False |" in table.read_text()
    stored = json.loads(table.with_suffix(".json").read_text())
    assert stored["environment"]["packages"]["torch"] and stored["rows"][0]["check"] == "a"


def test_results_are_copied_where_the_machine_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    for rows in ([{"bench": "a"}], [{"bench": "a"}, {"bench": "b|c", "details": {"us": 1.5}}]):
        table = gpu_results.write("gpu-bench", rows, tmp_path / "results", stamp="now")
    assert "| b\\|c | us 1.5 |" in table.read_text()
    for folder in ("out", "results"):
        assert sorted(file.name for file in (tmp_path / folder).iterdir()) == ["gpu-bench-now.json", "gpu-bench-now.md"]
        assert len(json.loads((tmp_path / folder / "gpu-bench-now.json").read_text())["rows"]) == 2
