"""`tune status` and `tune studies …`: what was run, how far it is, and forgetting it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.errors import ErrorGroup
from tuner.cli.run_directory import RunArgument, database_of, runs_under

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tuner.results import StudyResults
    from tuner.standing import Standing

REFRESH_SECONDS = 2.0
NOT_KNOWN = "-"
HEADINGS = ("study", "phase", "trials", "states", "load", "baseline", "best", "ETA", "search ended")

app = typer.Typer(cls=ErrorGroup, help="Studies that were run: list, show, delete.", no_args_is_help=True)

RunsOption = Annotated[Path, typer.Option(help="Directory of runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def status(
    run: RunArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until the study ends.")] = False,
    as_json: JsonOption = False,
) -> None:
    """How far a study is: phase, trials by state, best so far against the baseline. From any terminal.

    Example: tune status runs/demo --watch
    """
    if as_json:
        typer.echo(json.dumps([asdict(found) for found in _of_run(run)], indent=2))
    elif watch:
        _watch(run)
    else:
        from tuner.terminal import output

        output().print(_told(_of_run(run)))


@app.command("list")
def list_(runs: RunsOption = Path("runs"), as_json: JsonOption = False) -> None:
    """List every study under a directory of runs.

    Example: tune studies list --runs runs
    """
    from tuner.terminal import output

    if not runs.is_dir() and runs != Path("runs"):
        raise ValueError(f"--runs {runs}: no such directory")
    found = [one for run in runs_under(runs) for one in standings(run)]
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
    elif found:
        output().print(_table(found))
    else:
        typer.echo(f"{runs}: no studies")


@app.command()
def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """Print the trials of a study: state, configuration, objectives, reason.

    Example: tune studies show runs/demo
    """
    from tuner.results import load_results
    from tuner.store import Store
    from tuner.terminal import output

    with Store(database_of(run), create=False) as store:
        found = {name: load_results(store, name) for name in store.study_names()}
    if as_json:
        typer.echo(json.dumps([{"study": name, "trials": _as_dicts(one)} for name, one in found.items()], indent=2))
        return
    for name, results in found.items():
        output().print(_trials(name, results))


@app.command()
def delete(
    run: RunArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete the studies of a run from its database; its report and deploy files stay.

    Example: tune studies delete runs/demo --yes
    """
    from tuner.resume import runner_alive
    from tuner.store import Store

    with Store(database_of(run), create=False) as store:
        names = store.study_names()
        for name in names:
            if (owner := runner_alive(store, name)) is not None:
                raise ValueError(f"{run}: study {name!r} is being run by {owner}; stop it first")
        if not yes:
            typer.confirm(f"delete {', '.join(names)} with all measurements from {run}?", abort=True)
        for name in names:
            store.delete_study(name)
            typer.echo(f"deleted {name}")


def standings(run: Path) -> list[Standing]:
    """How far each study of a run is."""
    from tuner.standing import standing
    from tuner.store import Store

    with Store(database_of(run), create=False) as store:
        return [standing(store, name) for name in store.study_names()]


def _of_run(run: Path) -> list[Standing]:
    if not (found := standings(run)):
        raise ValueError(f"{database_of(run)}: holds no study")
    return found


def _watch(run: Path) -> None:
    import time

    from rich.live import Live

    from tuner.terminal import output

    found = _of_run(run)
    with Live(_told(found), console=output(), auto_refresh=False) as live:
        while any(one.runner for one in found):
            time.sleep(REFRESH_SECONDS)
            found = standings(run)
            live.update(_told(found), refresh=True)


def _table(found: list[Standing]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading)
    for one in found:
        table.add_row(*(Text(cell) for cell in _cells(one)))
    return table


def _told(found: list[Standing]) -> RenderableType:
    """A line for each thing to know, which a narrow terminal shows whole; studies apart."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tables = []
    for one in found:
        table = Table.grid(padding=(0, 2))
        for heading, cell in zip(HEADINGS, _cells(one), strict=True):
            if cell != NOT_KNOWN:
                table.add_row(heading, Text(cell))
        tables.append(table)
    return Group(*tables)


def _cells(one: Standing) -> Iterator[str]:
    from tuner.stopping import WORDS

    yield one.study
    yield one.phase + (f" ({one.runner})" if one.runner else "")
    yield f"{one.asked} of {one.budget}"
    yield ", ".join(f"{count} {state}" for state, count in sorted(one.trials.items())) or NOT_KNOWN
    yield NOT_KNOWN if one.time_scale is None else f"{one.time_scale:g}x"
    yield NOT_KNOWN if one.baseline_goodput is None else f"{one.baseline_goodput:.2f}/s"
    yield NOT_KNOWN if one.best_goodput is None else f"{one.best_goodput:.2f}/s (trial {one.best_trial})"
    yield NOT_KNOWN if one.eta_seconds is None else f"{one.eta_seconds / 60:.0f} min"
    yield NOT_KNOWN if one.search_end is None else WORDS[one.search_end]


def _as_dicts(results: StudyResults) -> list[dict[str, Any]]:
    """Objectives: goodput in requests/s, quality (1 = reference), tail latency in seconds."""
    from tuner.results import OBJECTIVES

    return [
        {
            "trial": one.number,
            "state": one.state,
            "on_front": one.on_front,
            "time_scale": one.time_scale,
            **dict(zip(OBJECTIVES, one.objectives or (None,) * len(OBJECTIVES), strict=True)),
            "constraints": dict(one.constraints),
            "knobs": dict(one.knobs),
            "reason": one.reason,
            "detail": one.detail,
        }
        for one in results.trials
    ]


def _trials(name: str, results: StudyResults) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(name), box=None, pad_edge=False)
    for heading in ("trial", "state", "goodput", "quality", "tail", "configuration", "reason"):
        table.add_column(heading)
    for trial in results.trials:
        figures = ["-"] * 3 if trial.objectives is None else [f"{value:.4g}" for value in trial.objectives]
        knobs = " ".join(f"{knob}={value}" for knob, value in trial.knobs.items()) or "defaults"
        cells = [str(trial.number), trial.state, *figures, knobs, trial.reason or ""]
        table.add_row(*(Text(cell) for cell in cells))
    return table
