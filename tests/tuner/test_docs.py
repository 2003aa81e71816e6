"""Every command that the documents show is run, in their order, on files of the kind that they speak of."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from tests.fakes import PATIENCE, engine_launcher, write_study
from tests.tuner.test_cli import TUNE, study_file
from tuner.cli.__main__ import app
from tuner.serving import adapters

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FIXTURES = ROOT / "tests" / "tuner" / "traffic" / "fixtures"
FEW = {"trials": 2, "startup_trials": 1, "finalists": 1, "examine": False, "sentinel": 0}
UNTIL_STOPPED = ("tune serve", "tune record")
ANSWERS = {"verify": 1, "doctor": 1, "whatif": 3}
"""Their other status, which is an answer too: a fake engine on a busy machine may get it."""

PROGRAMS = "tune|make|python3?|pip|curl|git|docker|kubectl|helm"
SHOWN = re.compile(rf"^ {{4,}}(?:\$ (.*)|((?:{PROGRAMS}) .*))$|(?<!`)`((?:{PROGRAMS})\s[^`]+)`(?!`)", re.MULTILINE)

STANDS_FOR = {
    "/models/my-llama": "models/llama",
    "tune COMMAND": "tune doctor",
    "tune export RUN --trial N": "tune export runs/demo --trial 1 --force --to vllm --out deploy",
    "FILE --format FORMAT --out TRACE": "spend_logs.csv --format litellm --out imported.jsonl",
    # What init wrote would run for minutes; a study of a few trials with the fake engine in its place.
    "tune run study.yaml": "tune run quick/study.yaml",
    "tune resume study.yaml": "tune resume quick/study.yaml",
    "--listen 127.0.0.1:9000": "--listen 127.0.0.1:0",
    "--port 8000": "--port 0",
}
"""What a document shows -> what is run in its place."""

OURS, NETWORK, PART = "takes minutes or a GPU; has tests of its own", "downloads from a registry", "names options only"
ONLY_CHECKED = {
    "make demo": OURS,
    "make test": OURS,
    "make gpu-check": OURS,
    "make gpu-bench": OURS,
    "python docs/generate.py": "writes into docs/; three tests hold the pages to it",
    "python -m benchmarks.capacity": OURS,
    "python -m benchmarks.search TABLE": OURS,
    "python -m benchmarks.tradeoffs": OURS,
    "python -m benchmarks.gpu_bench --rehearse": OURS,
    "python3 -m benchmarks.gpu_check": OURS,
    "python3 -m benchmarks.gpu_bench --part attention usual-qwen usual-llama single": OURS,
    "python3 -m benchmarks.gpu_bench --part tradeoffs speculation latency start fused": OURS,
    "python -m engine": OURS,
    "python -m engine --config FILE": OURS,
    "python -m engine --config engine.yaml --step-log FILE": OURS,
    "python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp"
    " --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .whl"
    " msgspec==0.22.0 pydantic==2.14.3 pydantic_core==2.50.4 annotated-types==0.8.0 typing-inspection==0.4.5": NETWORK,
    "python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl && export PYTHONPATH=/tmp/site": (
        "installs what the line before downloads"
    ),
    "tune record --redact REGEX": PART,
    "tune quality --url-a --url-b": PART,
    "tune verify --trace": PART,
    "tune --install-completion": "edits the shell's start-up file",
    "tune … | head": "stands for any command; test_cli_studies.py holds its status",
}
"""Commands that are shown and not run, each with the reason. A bare name, as in "`tune record` writes one", is checked
to be a command's; the two in `RUN_BY_NAME` need nothing more and run."""
RUN_BY_NAME = ("tune doctor", "tune space show")
BARE = re.compile(r"tune( [a-z]+)+")


def shown(document: Path) -> list[str]:
    """Every command of the document's code blocks and code spans, once, in order; continued lines are joined."""
    text = re.sub(r" *\\\n *", " ", document.read_text("utf-8"))
    text = re.sub(r"^ *```sh\n(.*?)^ *```$", _marked, text, flags=re.MULTILINE | re.DOTALL)
    found = (re.sub(r"\n *", " ", "".join(match.groups(""))) for match in SHOWN.finditer(text))
    # In a block, an explanation follows "#" or a wide gap.
    return list(dict.fromkeys(" ".join(re.split(r" #|   +", line)[0].split()) for line in found))


def _marked(block: re.Match[str]) -> str:
    """Lines of an sh block, each as a command whatever it begins with."""
    return "".join(f"    $ {line.strip()}\n" for line in block[1].splitlines() if line.strip())


def runs(command: str) -> bool:
    return command not in ONLY_CHECKED and (command in RUN_BY_NAME or not BARE.fullmatch(command))


def test_what_is_only_checked_is_what_the_documents_show() -> None:
    every = [command for document in DOCUMENTS for command in shown(document)]
    assert set(ONLY_CHECKED) <= set(every), "a row that no document shows"
    assert [words for words in STANDS_FOR if not any(words in command for command in every)] == []
    assert len({command for command in every if runs(command)}) >= 40


@pytest.mark.parametrize("command", sorted({c for document in DOCUMENTS for c in shown(document) if not runs(c)}))
def test_a_command_that_is_not_run_exists(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    elif words[0] == "tune":
        tune_has(words[1:])
    elif words[1:3] == ["-m", "pip"]:
        pins = (ROOT / "constraints.txt").read_text().splitlines()
        assert {word for word in words if "==" in word} <= set(pins)
    elif words[1] == "-m":
        module_parses(words[2], words[3:], monkeypatch)
    else:
        assert (ROOT / words[1]).is_file()


def tune_has(words: list[str]) -> None:
    """The command exists, and so do the options; arguments and values may be left out."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    options = [word for word in words if word.startswith("-")]
    assert not hasattr(command, "commands") or options or words == ["…", "|", "head"], f"{words}: no command"
    assert set(options) <= {name for parameter in command.params for name in parameter.opts}


class Parsed(Exception):
    """The module's parser took the words."""


def module_parses(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the module until its arguments are parsed; one that is shown without any is only found."""
    assert importlib.util.find_spec(module) is not None
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *args: Any) -> None:
        parse(parser, *args)
        raise Parsed

    if words:
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        monkeypatch.setattr("sys.argv", [module, *words])
        monkeypatch.delitem(sys.modules, module, raising=False)  # another test of this process may have imported it
        with pytest.raises(Parsed):
            runpy.run_module(module, run_name="__main__")


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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has, named as in the documents: a model, traffic, bounds, engine files, a key, the demo's run."""
    home = tmp_path_factory.mktemp("home")
    # A copy: the fake engine leaves notes in the model's directory.
    model = Path(shutil.copytree(ROOT / "engine/mini/mini", home / "models/llama"))
    for directory in ("examples/demo", "engine/mini/mini-draft"):
        shutil.copytree(ROOT / directory, home / directory)
    shutil.copy(ROOT / "examples/demo/tighter.yaml", home)
    shutil.copy(FIXTURES / "litellm_small.csv", home / "spend_logs.csv")
    shutil.copy(FIXTURES / "azure_small.csv", home / "AzureLLMInferenceTrace_conv.csv")
    (home / "gateway.csv").write_text("ts,in,out\n0,100,10\n400,20,4\n")
    (home / "key").write_text("0" * 64)
    for name in ("A.yaml", "B.yaml", "a.yaml", "b.yaml"):
        (home / name).write_text(yaml.safe_dump({"model": str(model)}))
    studies(home, model)
    return home


def studies(home: Path, model: Path) -> None:
    """The demo's run, another study to run, and their traffic and probes."""
    for name, at in (("demo", "demo"), ("chat-prod", "quick")):
        study_file(home / at, name=name, model=str(model), budget=FEW)
    shutil.copy(home / "quick/probes.jsonl", home)
    lines = (home / "quick/trace.jsonl").read_text().splitlines(keepends=True)
    # A header and one second of it, so that a replay is short.
    one = [line.replace('"acme"', '"zeta"') if number % 2 else line for number, line in enumerate(lines[:11])]
    one[0] = json.dumps(json.loads(one[0]) | {"seconds": 1.0}) + "\n"
    for name in ("two_tenants.jsonl", "trace.jsonl", "last-week.jsonl"):
        (home / name).write_text("".join(one))
    done = CliRunner().invoke(app, ["run", str(home / "demo/study.yaml"), "--out", str(home / "runs")])
    assert done.exit_code == 0, done.output
    stricter = yaml.safe_load((home / "runs/demo/study.yaml").read_text())
    stricter["slos"]["chat"]["ttft"] = 0.3
    (home / "stricter.yaml").write_text(yaml.safe_dump(stricter))


@pytest.fixture
def workplace(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current directory is a reader's; what starts the bundled engine in this process starts the fake one."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adapters, "BUNDLED_COMMAND", engine_launcher())


TO_RUN = {document.name: [c for c in shown(document) if runs(c)] for document in DOCUMENTS}


@pytest.mark.parametrize("document", [name for name, commands in TO_RUN.items() if commands])
@pytest.mark.usefixtures("workplace", "any_lag")
def test_every_command_runs(document: str, servers: dict[str, str]) -> None:
    for command in (substituted(command, servers) for command in TO_RUN[document]):
        if " --out trace.jsonl" in command:  # a reader records or imports, not both
            Path("trace.jsonl").unlink(missing_ok=True)
        run(command)
        if " --out trace.jsonl" in command:  # later commands speak of a class that no recorder saw here
            assert Path("trace.jsonl").is_file()
            shutil.copy("two_tenants.jsonl", "trace.jsonl")


def substituted(command: str, servers: dict[str, str]) -> str:
    for port, real in servers.items():
        command = command.replace(f"127.0.0.1:{port}", f"127.0.0.1:{real}")
    for words, others in STANDS_FOR.items():
        command = command.replace(words, others)
    return f"{command} --port 0" if command.startswith("tune serve") and "--port" not in command else command


def run(command: str) -> None:
    program, *words = shlex.split(command)
    if program == "curl":
        with urllib.request.urlopen(words[-1], timeout=PATIENCE) as response:
            assert response.status == 200
        return
    assert program == "tune", f"{command}: neither run nor in ONLY_CHECKED"
    if command.startswith(UNTIL_STOPPED):
        run_until_stopped(words)
        return
    done = CliRunner().invoke(app, words)
    assert done.exit_code in (0, ANSWERS.get(words[0], 0)), f"{command}: {done.output}"
    assert done.exception is None or isinstance(done.exception, SystemExit), f"{command}: {done.exception!r}"
    if command.startswith("tune init "):
        assert Path(words[1]).is_file()


def run_until_stopped(words: list[str]) -> None:
    """A server: it says where it listens, and ends well at Ctrl-C."""
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*TUNE, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **options
    ) as process:
        assert process.stdout is not None
        said = ""
        while "127.0.0.1" not in said and process.poll() is None:
            said += process.stdout.readline()
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=PATIENCE)[0]
        assert process.returncode in (0, 130), f"{words}: {process.returncode}: {said}"
