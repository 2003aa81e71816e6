"""Start `python -m engine` in a process of its own, with the real step loop or the fake one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_engine
import yaml
from openai import AsyncOpenAI

WITH_FAKE_CORE = f"""
import sys
from engine import __main__ as api
if "--long-notice" in sys.argv:
    sys.argv.remove("--long-notice")
    api.DEATH_NOTICE_S = 900.0
sys.exit(api.main(core_command=(sys.executable, {fake_engine.__file__!r})))
"""
"""--long-notice: after the step loop's death the API answers until it gets a signal."""


@dataclass(frozen=True)
class Engine:
    """A running API process. stderr: the file its log goes to."""

    url: str
    process: subprocess.Popen[str]
    stderr: Path

    def client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command(config: Path, *options: str, fake: bool) -> list[str]:
    program = ["-c", WITH_FAKE_CORE] if fake else ["-m", "engine"]
    return [sys.executable, *program, "--config", str(config), *options]


@contextmanager
def running(settings: dict[str, Any], *options: str, fake: bool = False) -> Iterator[Engine]:
    """The engine, ready for requests; killed at the end if it still runs."""
    with tempfile.TemporaryDirectory() as name:
        config, log = Path(name, "engine.yaml"), Path(name, "stderr.txt")
        config.write_text(yaml.safe_dump(settings))
        with (
            log.open("w") as stderr,
            subprocess.Popen(
                command(config, *options, fake=fake), stdout=subprocess.PIPE, stderr=stderr, text=True
            ) as process,
        ):
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line.startswith("listening http://127.0.0.1:"), log.read_text()
                yield Engine(line.removeprefix("listening ").strip(), process, log)
            finally:
                process.kill()
