"""`tune resume`: go on with a study that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.run_directory import DATABASE, STUDY_FILE, database_of, runs_under
from tuner.cli.studies import standings
from tuner.cli.study import execute


def resume(
    study: Annotated[
        Path | None, typer.Argument(help="Directory of a run, or its study file; default the one run that was stopped.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Directory of runs, where the run of a study file is, and is looked for.")
    ] = Path("runs"),
) -> None:
    """Go on with a study that was stopped; nothing that was measured is measured again.

    A run's directory goes on with the file that it began with. A study file may have more budget than it had.

    Example: tune resume runs/demo
    """
    from tuner.spec import load_spec

    run = _stopped(out) if study is None else study
    if run.is_dir() or not (run.exists() or run.suffix):
        database_of(run)  # where it is no run, the runs that there are
    file = run / STUDY_FILE if run.is_dir() else run
    spec = load_spec(file)
    directory = run if run.is_dir() else out / spec.name
    if not (directory / DATABASE).exists():
        raise ValueError(f"{directory}: holds no study to go on with; tune run {file} begins one")
    execute(file, spec, directory, resume=True)


def _stopped(out: Path) -> Path:
    """The run under `out` that ended before its end. Raises ValueError unless there is one, and one only."""
    runs = runs_under(out)
    stopped = [run for run in runs if any(found.phase == "stopped" for found in standings(run))]
    if len(stopped) != 1:
        found = f"{len(stopped)} were: {', '.join(map(str, stopped))}" if stopped else f"none of {len(runs)} was"
        raise ValueError(f"{out}: expected one run that was stopped, {found}; name it: tune resume {out}/NAME")
    return stopped[0]
