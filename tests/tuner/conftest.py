"""A server that several test files talk to."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.fakes import PATIENCE, engine_launcher, write_study


@pytest.fixture
def any_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements count however late a busy machine sent their requests: for bounds so tight that it would matter."""
    monkeypatch.setattr("tuner.scoring.doubts.LAG_LIMIT_FLOOR", PATIENCE)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A fake engine that listens, and its trace."""
    directory = tmp_path_factory.mktemp("server")
    write_study(directory)
    (directory / "engine.yaml").write_text(
        yaml.safe_dump({"model": str(directory / "model"), "kv_cache_dtype": "auto"})
    )
    command = [*engine_launcher(), "--config", str(directory / "engine.yaml"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1], directory / "trace.jsonl"
        process.terminate()
