"""The commands about a study: run it, read it, take its results away."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.errors import NOTHING_FEASIBLE
from tuner.cli.interrupt import INTERRUPTED, check
from tuner.cli.output_file import check_output, check_output_directory
from tuner.cli.run_directory import (
    DATABASE,
    STUDY_FILE,
    RunArgument,
    StudyOption,
    database_of,
    evidence_of,
    open_run,
    retune_conditions,
)

if TYPE_CHECKING:
    from tuner.spec import StudySpec

OUTPUTS = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", STUDY_FILE, "engine.yaml", "engine.log")


def run(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    out: Annotated[Path, typer.Option(help="Directory of runs; this one goes to OUT/NAME.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a study that was interrupted.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete an earlier run of this name first.")] = False,
    warm_start: Annotated[
        Path | None, typer.Option(help="Measure first what an earlier run, such as runs/demo, recommended.")
    ] = None,
) -> None:
    """Tune an engine: search, recommendation, report and deploy files under OUT/NAME.

    Example: tune run study.yaml --out runs
    """
    from tuner.spec import load_spec

    check_output_directory("--out", out)
    spec = load_spec(study)
    directory = out / spec.name
    if resume and fresh:
        raise ValueError("--resume and --fresh: expected one of them")
    if fresh:
        _remove_earlier(directory)
    if (directory / DATABASE).exists() and not resume:
        raise ValueError(
            f"{directory}: study {spec.name!r} exists; expected --resume to go on or --fresh to start over"
        )
    execute(study, spec, directory, resume, warm_start)


def execute(file: Path, spec: StudySpec, directory: Path, resume: bool, warm_start: Path | None = None) -> None:
    """Run or resume a study, and hand over what came of it. Ctrl-C and SIGTERM end it with the front so far and the
    line that goes on."""
    try:
        with stopping():
            _run_study(file, spec, directory, resume, warm_start)
    except KeyboardInterrupt:
        begun = (directory / DATABASE).exists()
        if begun:
            _hand_over_front(directory)
        where = [str(directory)] if file.parent == directory else [str(file), "--out", str(directory.parent)]
        again = shlex.join(["tune", "resume" if begun else "run", *where])
        typer.echo(f"interrupted{'' if begun else ' before it began'}; go on with: {again}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _finish(directory)


def _hand_over_front(directory: Path) -> None:
    """Report and front of a study that was interrupted, once it has a trial; a second Ctrl-C goes without."""
    from tuner.deliver import deliver_front
    from tuner.store import Store

    typer.echo("\ninterrupted; writing the front so far (Ctrl-C: leave it)", err=True)
    try:
        with Store(database_of(directory), create=False) as store:
            if not any(store.trials(name) for name in store.study_names()):
                return
        results, found = open_run(directory)
        if results.baseline.state == "running":
            return
        for path in deliver_front(results, found, directory, evidence_of(directory)):
            typer.echo(f"wrote {path}", err=True)
    except KeyboardInterrupt:
        return


@contextmanager
def stopping() -> Iterator[None]:
    """SIGTERM means what Ctrl-C means: the engine is ended, what was measured stays."""
    previous = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run_study(file: Path, spec: StudySpec, directory: Path, resume: bool, warm_start: Path | None) -> None:
    import yaml

    from tuner.console import StudyConsole
    from tuner.environment import environment
    from tuner.plan import make_plan
    from tuner.profiling import plan_profile
    from tuner.serving.testbed import EngineSettings, LiveTestbed
    from tuner.store import Store
    from tuner.study import run_study
    from tuner.warm_start import first_trials, offers

    try:  # a mistake in the study file must not leave a run behind
        plan = make_plan(spec)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    machine = environment()
    first = first_trials(database_of(warm_start), plan, machine) if warm_start is not None else []
    directory.mkdir(parents=True, exist_ok=True)
    if not resume:  # a resumed study keeps the file it began with
        text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)
        (directory / STUDY_FILE).write_text(text, "utf-8")
    engine = spec.engine
    settings = EngineSettings(directory, engine.launcher, engine.launch_timeout, engine.hang_timeout)

    def on_phase(phase: str, share: float) -> None:
        check()
        console.phase(phase, share)

    with (
        Store(directory / DATABASE) as store,
        StudyConsole(spec) as console,
        LiveTestbed(settings, machine, on_phase) as testbed,
    ):
        others = [path for path in directory.parent.glob(f"*/{DATABASE}") if path.parent != directory]
        if not resume and warm_start is None and (earlier := offers(others, plan, machine)):
            console.note(f"{earlier[-1]} tuned the same model on this machine: --warm-start {earlier[-1]} begins there")
        profiler = partial(plan_profile, settings) if spec.budget.screened else None
        run_study(spec, store, testbed, console, machine, resume, first, profiler)


def _finish(directory: Path) -> None:
    from tuner.console import print_recommendation
    from tuner.deliver import deliver

    results, found = open_run(directory)
    files = deliver(results, found, directory, evidence_of(directory))
    print_recommendation(found, files, retune_conditions(results, found), results.search_end)


def _remove_earlier(directory: Path) -> None:
    """Delete the files of an earlier run, and no others. Refuses while another process runs the study."""
    from tuner.deliver import FILES, forget_front
    from tuner.resume import runner_alive
    from tuner.store import Store

    if (directory / DATABASE).exists():
        with Store(directory / DATABASE) as store:
            for name in store.study_names():
                if (owner := runner_alive(store, name)) is not None:
                    raise ValueError(f"{directory}: study {name!r} is being run by {owner}; stop it before --fresh")
    for name in (*OUTPUTS, *FILES):
        (directory / name).unlink(missing_ok=True)
    forget_front(directory)


def recommend_(
    run: RunArgument,
    study: StudyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the best configuration of a run and why. Exit status 3 when none can be deployed.

    Example: tune recommend runs/demo
    """
    from tuner.alternatives import as_dict
    from tuner.console import print_recommendation
    from tuner.whatif import summary

    results, found = open_run(run, study)
    if as_json:
        told: dict[str, Any] = {
            "reasons": list(found.reasons),
            "tune_again_when": list(retune_conditions(results, found)),
        }
        told |= {"alternatives": [as_dict(one) for one in found.alternatives]}
        told |= {"files": dict(results.provenance.get("files", {}))}
        typer.echo(json.dumps(summary(found) | told | {"search_end": results.search_end}, indent=2))
    else:
        print_recommendation(found, retune=retune_conditions(results, found), ended=results.search_end)
    if not found.deployable:
        raise typer.Exit(NOTHING_FEASIBLE)


def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="File to write; default RUN/report.html.")] = None,
    study: StudyOption = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table of every figure into this directory, too.")] = None,
) -> None:
    """Write the report of a run: one HTML file that needs no network.

    Example: tune report runs/demo --csv tables
    """
    from reports.page import write_report

    path = out or (run.parent if run.suffix == ".db" else run) / "report.html"
    if out is not None:
        check_output("--out", out, database_of(run), study, makes_directory=True)
    if csv is not None:
        check_output_directory("--csv", csv)
    (results, found), evidence = open_run(run, study), evidence_of(run)
    write_report(results, found, path, evidence)
    typer.echo(f"wrote {path}")
    if csv is not None:
        from reports.tables import tables, write_tables

        for table in write_tables(tables(results, found, evidence), csv):
            typer.echo(f"wrote {table}")


def export(
    run: RunArgument,
    to: Annotated[
        str,
        typer.Option(help="engine, vllm, sglang, tensorrt-llm, llamacpp; compose, kubernetes, helm-values, systemd."),
    ],
    out: Annotated[Path, typer.Option(help="Directory for the files.")],
    study: StudyOption = None,
    engine: Annotated[
        str | None, typer.Option(help="Which engine compose, kubernetes or systemd run; default vllm.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Container image for compose, kubernetes, helm-values; default the engine's own.")
    ] = None,
    trial: Annotated[
        int | None, typer.Option(help="Another trial than the recommended, such as an alternative.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also what misses an SLO or a quality floor.")] = False,
) -> None:
    """Write the recommended configuration for an engine. Exit status 3 when none can be deployed.

    Example: tune export runs/demo --to vllm --out deploy
    """
    from tuner.deliver import export_to, refusal
    from tuner.recommend import instead

    check_output_directory("--out", out)
    results, found = open_run(run, study)
    if trial is None and found.trial is None and force and found.least_violating is not None:
        trial = found.least_violating.number
    chosen = found if trial is None else instead(results, found, trial)
    if (why := refusal(chosen)) is not None and not (force and chosen.trial is not None):
        typer.echo(why if chosen.trial is None else f"{why} --force writes it all the same.", err=True)
        raise typer.Exit(NOTHING_FEASIBLE)
    remarks = (why or chosen.verdict,) if chosen is not found or why else ()
    for path in export_to(to, results, chosen, out, engine, image, remarks, force):
        typer.echo(f"wrote {path}")
