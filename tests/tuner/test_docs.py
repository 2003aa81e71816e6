"""Every command that the documents show is run, in their order, on files of the kind that they speak of."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from tests.fakes import engine_launcher, write_study
from tests.tuner.test_cli import TUNE, study_file
from tuner.cli.__main__ import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("tutorial.md", "how-to.md")
FIXTURES = ROOT / "tests" / "tuner" / "traffic" / "fixtures"
UNTIL_STOPPED = ("tune serve", "tune record")
NOT_OURS = ("make demo", "curl ")
"""`make demo` is what CI's newcomer runs; it and curl are only checked to name what there is."""


def commands(document: str) -> list[str]:
    """Lines of the document's sh blocks."""
    text = (ROOT / "docs" / document).read_text("utf-8")
    blocks = re.findall(r"^( *)```sh\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [line.strip() for _, block in blocks for line in block.splitlines() if line.strip()]


def shown() -> Iterator[tuple[str, str]]:
    """Every command line of README and docs, with the document that shows it; continued lines are joined."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text("utf-8").replace("\\\n", " ")
        lines = re.findall(r"^ {4,}(tune [a-z][^\n#]*)", text, re.MULTILINE)
        for line in dict.fromkeys(lines):
            if not re.match(r"tune \w+(\.py)?  |tune [a-z ]+ [A-Z]+\b", line):
                yield path.name, " ".join(line.split())


@pytest.mark.parametrize(("document", "line"), list(shown()))
def test_every_command_shown_parses(document: str, line: str) -> None:
    """The options and arguments of what other documents show exist; the two above are run."""
    command: Any = typer.main.get_command(app)
    name, words = "tune", shlex.split(line)[1:]
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"{document}: {line}"
        name, command, words = f"{name} {words[0]}", command.commands[words[0]], words[1:]
    command.make_context(name, words)  # raises where an option or argument does not exist


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Ports that the documents speak of -> servers that run."""
    directory = tmp_path_factory.mktemp("servers")
    with ExitStack() as running:
        found = {}
        for port in ("8000", "8001"):
            config = directory / f"{port}.yaml"
            write_study(directory / port)
            config.write_text(yaml.safe_dump({"model": str(directory / port / "model")}))
            command = [*engine_launcher(), "--config", str(config), "--port", "0"]
            process = running.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            running.callback(process.kill)
            assert process.stdout is not None
            found[port] = process.stdout.readline().strip().rpartition(":")[2]
        yield found


def workplace(directory: Path) -> None:
    """What a reader has: a run of the demo, a trace, a spend log, probes, a model, bounds and a key."""
    # A copy: the fake engine leaves notes in the model's directory.
    shutil.copytree(ROOT / "engine/mini/mini", directory / "models" / "llama")
    shutil.copy(FIXTURES / "litellm_small.csv", directory / "spend_logs.csv")
    (directory / "examples/demo").mkdir(parents=True)
    shutil.copy(ROOT / "examples/demo/tighter.yaml", directory / "examples/demo")
    shutil.copy(ROOT / "examples/demo/tighter.yaml", directory)
    fake = directory / "fake"
    model = {"name": "demo", "model": str(directory / "models" / "llama")}
    done = CliRunner().invoke(app, ["run", str(study_file(fake, **model)), "--out", str(directory / "runs")])
    assert done.exit_code in (0, 3), done.output
    lines = (fake / "trace.jsonl").read_text().splitlines(keepends=True)
    # A header and two seconds of it, so that a replay is short.
    two = [line.replace('"acme"', '"zeta"') if number % 2 else line for number, line in enumerate(lines[:21])]
    two[0] = json.dumps(json.loads(two[0]) | {"seconds": 2.0}) + "\n"
    (fake / "two_tenants.jsonl").write_text("".join(two))
    shutil.copy(fake / "two_tenants.jsonl", directory / "trace.jsonl")
    shutil.copy(fake / "probes.jsonl", directory)
    (directory / "key").write_text("0" * 64)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_runs(
    document: str, tmp_path: Path, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    shown = commands(document)
    assert len(shown) >= 7
    for command in shown:
        if command.startswith(NOT_OURS):
            assert command != "make demo" or "\ndemo:" in (ROOT / "Makefile").read_text()
            continue
        if command == "tune run study.yaml":  # what init wrote would run for minutes; the same with the fake engine
            assert Path("study.yaml").is_file()
            command = f"tune run {study_file(tmp_path / 'quick')}"
        if " --out trace.jsonl" in command:  # a reader records or imports, not both
            Path("trace.jsonl").unlink(missing_ok=True)
        run(command, servers)
        if " --out trace.jsonl" in command:  # later commands speak of a class that no recorder saw here
            assert Path("trace.jsonl").is_file()
            shutil.copy(tmp_path / "fake" / "two_tenants.jsonl", tmp_path / "trace.jsonl")


def run(command: str, servers: dict[str, str]) -> None:
    for port, real in servers.items():
        command = command.replace(f"127.0.0.1:{port}", f"127.0.0.1:{real}")
    command = command.replace("--listen 127.0.0.1:9000", "--listen 127.0.0.1:0").replace("--port 8000", "--port 0")
    words = shlex.split(command)[1:]
    if command.startswith(UNTIL_STOPPED):
        run_until_stopped(words)
        return
    done = CliRunner().invoke(app, words)
    assert done.exit_code in (0, 1), f"{command}: {done.exit_code}: {done.output}"
    assert done.exception is None or isinstance(done.exception, SystemExit), f"{command}: {done.exception!r}"


def run_until_stopped(words: list[str]) -> None:
    """A server: it says where it listens, and ends well at Ctrl-C."""
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*TUNE, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **options
    ) as process:
        assert process.stdout is not None
        said = ""
        deadline = time.monotonic() + 60
        while "127.0.0.1" not in said and time.monotonic() < deadline and process.poll() is None:
            said += process.stdout.readline()
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=60)[0]
        assert process.returncode in (0, 130), f"{words}: {process.returncode}: {said}"
