"""Every command explains itself with an example that parses, and ends with a documented exit status."""

from __future__ import annotations

import ast
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from tests.fakes import FakeTestbed, cases, make_spec
from tests.tuner.test_study import Log
from tuner.cli import errors
from tuner.cli.__main__ import app
from tuner.store import Store
from tuner.study import run_study

ROOT = Path(__file__).parents[2]
DOCS = runpy.run_path(str(ROOT / "docs/generate.py"))
COMMANDS: list[tuple[str, Any]] = list(DOCS["commands"]("tune", get_command(app)))


@pytest.mark.parametrize(("name", "command"), [pytest.param(*row, id=row[0]) for row in COMMANDS])
def test_every_help_has_an_example_that_parses(name: str, command: Any) -> None:
    shown = CliRunner().invoke(app, [*name.split()[1:], "--help"])
    assert shown.exit_code == 0 and "Example: tune " in shown.stdout
    words = shlex.split(DOCS["example"](command))
    assert words[: len(name.split())] == name.split()
    command.make_context(name, words[len(name.split()) :])  # raises where an option or argument does not exist


def test_the_page_of_the_commands_is_generated() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert page == DOCS["render_cli"](), "run: python docs/generate.py"


def test_every_status_that_a_command_ends_with_is_in_the_table() -> None:
    used = {
        node.args[0].id if isinstance(node.args[0], ast.Name) else ast.unparse(node.args[0])
        for path in (ROOT / "tuner/cli").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.Exit"
    }
    used.discard("status")  # what errors._fail is given
    assert used and {getattr(errors, name) for name in used} <= set(errors.EXIT_STATUSES)


STATUSES = [
    ("done", ["space", "show"], 0),
    ("the answer is no: declined", ["studies", "delete", "{run}"], 1),
    ("a mistake: no such run", ["recommend", "{run}/nowhere"], 2),
    ("a mistake: an unknown option", ["recommend", "--fast"], 2),
    ("nothing to recommend", ["recommend", "{run}"], 3),
    ("nothing to export", ["export", "{run}", "--to", "vllm", "--out", "{run}/out"], 3),
    ("nothing to verify", ["verify", "{run}"], 3),
    ("nothing left by other SLOs", ["whatif", "{run}", "--slo", "{run}/new.yaml"], 3),
    ("an engine that does not start", ["replay", "{run}/trace.jsonl", "--engine", "{run}/engine.yaml"], 4),
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of which nothing is feasible."""
    directory = tmp_path_factory.mktemp("run")
    spec = make_spec(directory, slos={"chat": {"ttft": 0.001}}, budget={"trials": 1, "finalists": 0})
    with Store(directory / "study.db") as store:
        run_study(spec, store, FakeTestbed(), Log(), {}, False)
    (directory / "new.yaml").write_text("slos: {chat: {ttft: 0.0005}}")
    (directory / "engine.yaml").write_text(yaml.safe_dump({"model": str(directory / "model")}))
    return directory


@pytest.mark.parametrize(("command", "status"), cases(STATUSES))
def test_exit_statuses_are_what_the_table_says(run: Path, command: list[str], status: int) -> None:
    found = CliRunner().invoke(app, [word.format(run=run) for word in command], input="n\n")
    assert found.exit_code == status, found.output
    assert status in errors.EXIT_STATUSES and "Traceback" not in found.output
