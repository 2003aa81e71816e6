"""What is stamped on a measurement: facts of this machine, content hashes, and nothing that needs torch."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tuner.environment import cpu_pressure, environment, file_hash, model_hash


def test_tells_this_machine() -> None:
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["packages"]["optuna"] == version("optuna")
    assert found["cpu"] and found["cpu_cores"] >= 1 and found["memory_bytes"] > 2**20
    assert json.loads(json.dumps(found)) == found
    assert len(found["commit"]) == 40 and found["dirty"] in (True, False)


def test_without_tools_it_tells_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = environment()
    assert found["gpus"] == [] and "commit" not in found


def test_imports_no_torch() -> None:
    code = "import sys, tuner.environment as e; e.environment(); print('torch' in sys.modules, 'optuna' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "False False\n"


def test_the_commit_is_that_of_git() -> None:
    root = Path(__file__).parents[2]
    told = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=root)
    assert environment()["commit"] == told.stdout.strip()


def test_hashes_follow_the_content(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    before = model_hash(tmp_path)
    (tmp_path / "README.md").write_text("not part of the model")
    assert model_hash(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert model_hash(tmp_path) != before
    assert file_hash(tmp_path / "config.json") != file_hash(tmp_path / "README.md")


def test_pressure_is_a_share() -> None:
    found = cpu_pressure()
    assert found is None or 0.0 <= found <= 1.0
