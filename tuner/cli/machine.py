"""`tune doctor`, `tune space show` and `tune serve`: the machine, the knobs, the engine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.errors import REFUSED, ErrorGroup
from tuner.cli.output_file import check_output_directory
from tuner.cli.run_directory import database_of

if TYPE_CHECKING:
    from search_spaces.space import SearchSpace

SIGNS = {"ok": "ok", "warning": "warn", "failure": "FAIL"}
BUNDLED_SPACE = Path(__file__).parents[2] / "search_spaces" / "engine.yaml"
space_app = typer.Typer(cls=ErrorGroup, help="Search spaces: what a study may vary.", no_args_is_help=True)


def doctor(
    out: Annotated[Path, typer.Option(help="Where runs are to be written.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what will work on this machine and what will not. Exit status 1 when a study cannot run.

    Example: tune doctor
    """
    from tuner.doctor import as_json as plain
    from tuner.doctor import checks

    check_output_directory("--out", out)
    found = checks(out)
    if as_json:
        typer.echo(json.dumps(plain(found), indent=2))
    else:
        for check in found:
            advice = f"; {check.advice}" if check.advice else ""
            typer.echo(f"{SIGNS[check.verdict]:<5} {check.name}: {check.found}{advice}")
    if any(check.verdict == "failure" for check in found):
        raise typer.Exit(REFUSED)


@space_app.command()
def show(
    space: Annotated[
        Path | None, typer.Argument(help="A search space or a study file; default the engine's own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the parameters of a search space: range, condition, unit, cost of a change, what it does.

    Example: tune space show examples/demo/study.yaml
    """
    from engine.config import knobs

    about = {knob.name: knob for knob in knobs()}
    rows = [
        {
            "name": name,
            "range": parameter.describe(),
            "when": dict(parameter.when),
            "unit": about[name].unit if name in about else None,
            "cost": about[name].cost if name in about else None,
            "description": about[name].description if name in about else None,
        }
        for name, parameter in _space(space or BUNDLED_SPACE).parameters.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _print_space(rows)


def _space(path: Path) -> SearchSpace:
    """The search space in a file, or that of a study file."""
    from engine.yaml_file import read_yaml
    from search_spaces.space import load_space
    from tuner.spec import load_spec

    values = read_yaml(path)
    is_study = isinstance(values, dict) and "search_space" in values
    return load_space(load_spec(path).search_space if is_study else path)


def _print_space(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from tuner.terminal import output

    table = Table(box=None, pad_edge=False)
    for heading in ("parameter", "range", "only if", "unit", "a change costs", "what it does"):
        table.add_column(heading)
    for row in rows:
        when = ", ".join(f"{other} {wanted}" for other, wanted in row["when"].items())
        cells = (row["name"], row["range"], when, row["unit"], row["cost"], row["description"])
        table.add_row(*(Text(str(cell or "-")) for cell in cells))
    output().print(table)


def serve(
    config: Annotated[Path, typer.Argument(help="engine.yaml, recommended.yaml, or the directory of a run.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one, printed once ready.")] = 8000,
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Permit a host that others can reach.")] = False,
) -> None:
    """Serve a configuration with the bundled engine, such as the recommended one of a run.

    Example: tune serve runs/demo
    """
    path = config / "recommended.yaml" if config.is_dir() else config
    if not path.is_file():
        if (config / "config.json").is_file():
            raise ValueError(f"{config}: a checkpoint; expected a file, such as engine.yaml, that says model: {config}")
        if not config.exists() and not config.suffix:
            database_of(config)  # where it is no run, the runs that there are
        raise ValueError(f"{path}: no such file; expected an engine.yaml or a run with a recommendation")
    sys.stdout.flush()
    command = [sys.executable, "-m", "engine", "--config", str(path), "--host", host, "--port", str(port)]
    # The engine takes this process's place, so that signals and the exit status are its own.
    os.execv(sys.executable, [*command, *(["--allow-remote"] if allow_remote else [])])
