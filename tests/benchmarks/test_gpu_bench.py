"""make gpu-bench, rehearsed without a GPU: every part at toy sizes, and the arithmetic of its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_bench
from benchmarks.gpu import attention, fused, latency, single, speculation, start, tradeoffs, usual
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.rows import Row, at_least, at_most
from benchmarks.gpu.runs import Answer, Request, Run
from benchmarks.gpu.shapes import SHAPES, weights_read
from benchmarks.gpu.sizes import Sizes
from engine.models.config import ModelConfig

ROOT = Path(gpu_bench.__file__).parent.parent
REHEARSED = {
    "attention": (attention.attention_rows, 4),
    "usual-qwen": (usual.qwen_rows, 5),
    "usual-llama": (usual.llama_rows, 5),
    "single": (single.single_rows, 4),
    "tradeoffs": (tradeoffs.tradeoff_rows, 12),
    "speculation": (speculation.speculation_rows, 4),
    "latency": (latency.latency_rows, 6),
    "fused": (fused.fused_rows, 6),
    "start": (start.start_rows, 2),
}
"""What each part is, and how many figures it has in a rehearsal."""


@pytest.mark.parametrize("part", PARTS)
def test_every_part_measures(part: str) -> None:
    measure, count = REHEARSED[part]
    assert PARTS[part].rows == f"{measure.__module__}:{measure.__name__}"
    rows = [row.record(part) for row in measure(Bench.on(torch.device("cpu")))]
    assert len(rows) == count
    for row in rows:
        assert row["measured"] == row["measured"] >= 0, row
        assert (row["passed"] is None) == (row["target"] is None), row
    json.dumps(rows)


def test_all_parts_fit_in_two_calls_of_ten_minutes() -> None:
    budgets = [part.budget_s for part in PARTS.values()]
    assert sum(budgets[:4]) < 570 and sum(budgets[4:]) < 570


def test_the_command_runs_a_part_in_its_own_process(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu_bench.PARTS, "attention", PARTS["attention"]._replace(budget_s=900))
    assert gpu_bench.main(["--rehearse", "--part", "attention"]) == 0
    assert (
        capfd.readouterr().out.count("decode attention, int4, 2 x 20 tokens") == 2
    )  # as it is measured, and the table


def test_what_a_part_measured_before_it_took_too_long_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu_bench.PARTS, "attention", Part("", 0.5))
    (tmp_path / "rows").write_text('{"bench": "first"}\n')
    rows, whole = gpu_bench._run("attention", tmp_path / "rows", rehearse=True)
    assert not whole
    assert [row["bench"] for row in rows] == ["first", "not measured from here on: stopped after its 0.5 s"]
    assert rows[-1]["passed"] is False


def test_a_part_that_fails_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = iter([([{"bench": "broken", "passed": False}], False), ([{"bench": "fine"}], True)])
    monkeypatch.setattr(gpu_bench, "_run", lambda *arguments: next(ends))
    assert gpu_bench.main(["--rehearse", "--part", "attention", "start"]) == 1
    assert "| fine |" in capsys.readouterr().out


def test_without_a_gpu_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu_bench.main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "gpu-bench: torch sees no NVIDIA GPU here; nothing was run\n"


def test_nothing_is_imported_that_a_lent_gpu_machine_lacks() -> None:
    names = ["benchmarks.gpu_check", "benchmarks.gpu_bench", *(part.rows.split(":")[0] for part in PARTS.values())]
    program = f"""
import sys
sys.modules.update(dict.fromkeys(["optuna", "plotly", "sqlalchemy", "pandas", "openai", "hypothesis"]))
for name in {names!r}:
    __import__(name)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_row_is_held_to_its_target() -> None:
    assert Row("a", 0.9, "of copy bandwidth", at_least(0.88)).record("p")["passed"] is True
    assert Row("a", 0.9, "s", at_most(0.88)).record("p")["passed"] is False
    assert Row("a", 0.9, "s").record("p")["passed"] is None
    assert str(at_most(200.0)) == "<= 200"


def test_the_usual_load_is_the_published_one() -> None:
    load = usual.usual_requests(Sizes().usual, Sizes().usual_lengths)
    assert (len(load), sum(request.output for request in load)) == (256, 133_966)


def test_the_roofline_reads_weights_each_step_and_keys_each_token() -> None:
    shape = ModelConfig.from_json(SHAPES["Llama-3-8B"], "here")
    requests = [Request([0] * 10, 2), Request([0] * 5, 1)]
    per_token = 131_072
    assert usual.bytes_to_read(shape, requests) == 2 * weights_read(shape) + (11 + 12 + 6) * per_token


def test_a_step_does_not_read_an_embedding_that_is_no_head() -> None:
    untied = ModelConfig.from_json(SHAPES["Llama-3-8B"], "here")
    tied = ModelConfig.from_json(SHAPES["Llama-3-8B"] | {"tie_word_embeddings": True}, "here")
    assert weights_read(untied) == weights_read(tied)


def test_the_draft_costs_a_tenth_of_its_target() -> None:
    draft, target = (ModelConfig.from_json(SHAPES[name], name) for name in (speculation.DRAFT, speculation.MODEL))
    assert weights_read(draft) / weights_read(target) == pytest.approx(0.1, abs=0.02)
    assert 1.8 < speculation.ideal_speedup(0.7, 0.1) < 2


def test_gaps_are_those_of_steps_in_which_all_decode() -> None:
    early = Answer(Request([1], 4), [(1.0, 1), (5.0, 1), (5.5, 1), (7.0, 2)])
    late = Answer(Request([1], 3, at=2.0), [(5.0, 1), (5.5, 1), (6.0, 1)])
    run = Run([early, late], 7.0, 2)
    assert run.decode_gaps() == [0.5]
    assert run.decode_rate() == (2 + 1) / 1.0
    assert (late.ttft, run.tokens_per_s) == (3.0, 8 / 7)


@pytest.mark.parametrize(
    ("case", "intervals", "gaps", "length"),
    [
        ("one after the other", [(0.0, 1.0), (3.0, 4.0)], [2.0], 4.0),
        ("two at once", [(0.0, 2.0), (1.0, 1.5), (2.0, 3.0)], [], 3.0),
        ("a long one over a short one", [(0.0, 5.0), (1.0, 2.0), (6.0, 7.0)], [1.0], 7.0),
    ],
)
def test_idle_gaps(case: str, intervals: list[tuple[float, float]], gaps: list[float], length: float) -> None:
    assert single.idle_gaps(intervals) == (gaps, length)


def test_percentile_is_a_value_that_was_measured() -> None:
    assert [tradeoffs.percentile([3.0, 1.0, 2.0, 4.0], percent) for percent in (1, 50, 75, 95)] == [1, 2, 3, 4]
