"""Writes engine-config.md from EngineConfig, study-file.md from StudySpec and cli.md from the commands' help.

    python docs/generate.py

Tests hold pages and code together.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from engine.config import Knob, knobs
from tuner.cli.__main__ import app
from tuner.cli.errors import EXIT_STATUSES
from tuner.spec import StudySpec

PAGE = Path(__file__).with_name("engine-config.md")
STUDY_PAGE = Path(__file__).with_name("study-file.md")
CLI_PAGE = Path(__file__).with_name("cli.md")
CLI_HEAD = """# Commands

Generated from the commands' help by `python docs/generate.py`; `tune COMMAND --help` tells the options. `--json` prints
JSON where a script may want it. Output is plain where it is not a terminal, and with `NO_COLOR`.
`tune --install-completion` completes commands and options in your shell.

| command | what it does | example |
|---|---|---|
"""
EXIT_HEAD = """
## Exit statuses

| status | meaning |
|---|---|
"""
STUDY_HEAD = """# The study file

Generated from `tuner/spec.py` by `python docs/generate.py`. YAML; relative paths are taken from the file's own
directory. `tune init` writes one to begin with; [`examples/demo/study.yaml`](../examples/demo/study.yaml) is the
demo's.
"""
HEAD = """# Settings of the engine

Generated from `engine/config.py` by `python docs/generate.py`. Cost: `hot` takes effect at the next step, `cache`
rebuilds the KV pool (weights stay loaded), `process` needs a new process.

| setting | default | unit | range | cost | meaning |
|---|---|---|---|---|---|
"""


def render() -> str:
    """The whole page."""
    return HEAD + "".join(_row(knob) for knob in knobs())


def _row(knob: Knob) -> str:
    default = "required" if knob.name == "model" else f"`{'none' if knob.default is None else knob.default}`"
    return (
        f"| `{knob.name}` | {default} | {knob.unit} | {_range(knob.json_schema)} | {knob.cost} | {knob.description} |\n"
    )


def _range(schema: dict[str, Any]) -> str:
    options = [o for o in schema.get("anyOf", [schema]) if o.get("type") != "null"]
    [kind] = options
    if "enum" in kind:
        return ", ".join(map(str, kind["enum"]))
    low, high = kind.get("minimum"), kind.get("maximum")
    if low is None:
        return "-"
    return f"{low} … {high}" if high is not None else f">= {low}"


def render_study() -> str:
    """The page of the study file: a table for each section."""
    return STUDY_HEAD + "".join(_section("", StudySpec, set()))


def _section(prefix: str, section: type[BaseModel], done: set[type[BaseModel]]) -> Iterator[str]:
    done.add(section)
    about = " ".join((section.__doc__ or "").split())
    yield f"\n## {f'`{prefix}`' if prefix else 'Top level'}\n\n{about}\n\n| key | default | meaning |\n|---|---|---|\n"
    nested = []
    for name, found in section.model_fields.items():
        inner = _model_in(found.annotation)
        default = "required" if found.is_required() else "see below" if inner else f"`{_shown(found)}`"
        yield f"| `{name}` | {default} | {found.description or ('see below' if inner else '')} |\n"
        if inner is not None and inner not in done:
            nested.append((f"{prefix}.{name}" if prefix else name, inner))
    for path, inner in nested:
        if inner not in done:
            yield from _section(path, inner, done)


def render_cli() -> str:
    """The page of the commands."""
    rows = [_command(name, command) for name, command in commands("tune", get_command(app))]
    return CLI_HEAD + "".join(rows) + EXIT_HEAD + "".join(f"| {n} | {text} |\n" for n, text in EXIT_STATUSES.items())


def commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command below this one, by what is typed to call it."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, inner in command.commands.items():
        yield from commands(f"{name} {word}", inner)


def example(command: Any) -> str:
    """The command line that a command's help gives. Raises ValueError for one that gives none."""
    about, _, line = (command.help or "").partition("Example: ")
    if not line:
        raise ValueError(f"{command.name}: its help has no example")
    return " ".join(line.split("\n\n")[0].split())


def _command(name: str, command: Any) -> str:
    about = " ".join(command.help.partition("Example: ")[0].split())
    return f"| `{name}` | {about} | `{example(command)}` |\n"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, by itself or as the values of a mapping."""
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _shown(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    return "none" if default in (None, (), {}) else str(default)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    STUDY_PAGE.write_text(render_study(), encoding="utf-8")
    CLI_PAGE.write_text(render_cli(), encoding="utf-8")
