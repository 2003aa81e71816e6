"""tune init writes a study file that runs; the reference of the study file is generated."""

from __future__ import annotations

import os
import pty
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from tuner.cli.__main__ import app
from tuner.plan import make_plan
from tuner.spec import load_spec
from tuner.study_file import PRESETS, study_name

ROOT = Path(__file__).parents[2]
MODEL, TRACE = ROOT / "engine/mini/mini", ROOT / "examples/demo/trace.jsonl"


def _init(out: Path, **options: object) -> Result:
    given = {"model": MODEL, "trace": TRACE, "preset": "chat", **options}
    args = [part for name, value in given.items() if value for part in (f"--{name.replace('_', '-')}", str(value))]
    return CliRunner().invoke(app, ["init", str(out), *args])


@pytest.mark.parametrize("preset", PRESETS)
def test_what_init_writes_is_a_study(tmp_path: Path, preset: str) -> None:
    found = _init(tmp_path / "study.yaml", preset=preset, draft_model=ROOT / "engine/mini/mini-draft")
    assert found.exit_code == 0, found.output
    plan = make_plan(load_spec(tmp_path / "study.yaml"))
    assert {probe.slice for probe in plan.probes} == {"production"}
    assert plan.windows["tune"].requests and plan.windows["holdout"].requests
    assert set(plan.spec.slos) == {"chat", "docs"}, "every class of the trace has bounds"
    assert "num_speculative_tokens" in plan.space.parameters
    assert "&id" not in (tmp_path / "study.yaml").read_text(), "no YAML anchors: people edit one class at a time"


def test_without_a_draft_model_no_speculation_is_searched(tmp_path: Path) -> None:
    _init(tmp_path / "study.yaml")
    written = yaml.safe_load((tmp_path / "study.yaml").read_text())
    assert "draft_model" not in written and "num_speculative_tokens" not in written["search_space"]["parameters"]


MISTAKES = [
    ("an unknown preset", {"preset": "chta"}, "--preset chta: unknown; did you mean chat?"),
    ("no checkpoint", {"model": "/nowhere"}, "--model /nowhere: expected a checkpoint directory with config.json"),
    ("nothing given, nobody to ask", {"model": None}, "--model: not given, and there is no terminal to ask"),
    ("a trace that is none", {"trace": __file__}, "test_study_file.py: line 1"),
]


@pytest.mark.parametrize(("about", "options", "message"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_line(tmp_path: Path, about: str, options: dict[str, object], message: str) -> None:
    found = _init(tmp_path / "study.yaml", **options)
    assert found.exit_code == 2 and message in found.stderr and found.stderr.count("\n") == 1
    assert not (tmp_path / "study.yaml").exists()


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("mine")
    found = _init(tmp_path / "study.yaml")
    assert found.exit_code == 2 and "exists" in found.stderr
    assert (tmp_path / "study.yaml").read_text() == "mine"


@pytest.mark.parametrize(("text", "name"), [("Llama 3/8B", "Llama-3-8B"), ("...", "study"), ("a" * 99, "a" * 64)])
def test_names(text: str, name: str) -> None:
    assert study_name(text) == name


def test_the_reference_of_the_study_file_is_generated() -> None:
    page = ROOT / "docs/study-file.md"
    assert page.read_text(encoding="utf-8") == runpy.run_path(str(ROOT / "docs/generate.py"))["render_study"](), (
        "run: python docs/generate.py"
    )


def test_a_bad_answer_is_asked_for_again_and_ctrl_c_ends(tmp_path: Path) -> None:
    terminal, own = pty.openpty()
    command = [sys.executable, "-m", "tuner.cli", "init", str(tmp_path / "study.yaml")]
    with subprocess.Popen(command, cwd=ROOT, stdin=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as asking:
        assert asking.stdout is not None
        os.write(terminal, f"{tmp_path}/none\n{MODEL}\nnone.jsonl\n".encode())
        told = ""
        while told.count("Trace file:") < 2:
            letter = asking.stdout.read(1).decode()
            assert letter, told
            told += letter
        asking.send_signal(signal.SIGINT)
    assert asking.returncode == 130 and not (tmp_path / "study.yaml").exists()
    assert f"--model {tmp_path}/none: expected a checkpoint directory" in told
    assert "none.jsonl: cannot be read" in told
    os.close(terminal)
    os.close(own)
