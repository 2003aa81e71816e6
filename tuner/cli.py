"""The command line: parse, call, print. Imports wait until a command runs, so that --help answers at once.

Exit status: 0 done; 2 the user's mistake, one line on standard error; 3 nothing to recommend or export;
4 the engine failed; 130 interrupted.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from tuner.recommend import Recommendation
    from tuner.results import StudyResults
    from tuner.spec import StudySpec

NOTHING_FEASIBLE = 3
DATABASE = "study.db"
OUTPUTS = ("study.db", "study.db-wal", "study.db-shm", "study.yaml", "engine.yaml", "engine.log")


class _Group(TyperGroup):
    """Turns the errors that users can act on into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        from tuner.errors import ServingError

        try:
            return super().invoke(ctx)
        except ValueError as error:
            _fail(str(error), 2)
        except ServingError as error:
            _fail(f"{error.reason}: {error}", 4)
        except OSError as error:
            _fail(f"{error.filename or ''}: {error.strerror}", 2)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Group,
    name="tune",
    help="Find the best configuration of an LLM server under recorded traffic.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
trace_app = typer.Typer(help="Traces that others published.", no_args_is_help=True)
app.add_typer(trace_app, name="trace")

RunArgument = Annotated[Path, typer.Argument(help="Directory of a run, such as runs/demo.")]
StudyOption = Annotated[
    Path | None, typer.Option(help="Score by the SLOs and floors of this study file, without an engine.")
]


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    out: Annotated[Path, typer.Option(help="Directory of runs; this one goes to OUT/NAME.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a study that was interrupted.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete an earlier run of this name first.")] = False,
) -> None:
    """Tune an engine: search, recommendation, report and deploy files under OUT/NAME."""
    from tuner.spec import load_spec

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
    previous = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        _run_study(spec, directory, resume)
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; go on with: tune run {study} --out {out} --resume", err=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, previous)
    _finish(directory)


def _run_study(spec: StudySpec, directory: Path, resume: bool) -> None:
    import yaml

    from tuner.console import StudyConsole
    from tuner.environment import environment
    from tuner.plan import make_plan
    from tuner.serving.testbed import EngineSettings, LiveTestbed
    from tuner.store import Store
    from tuner.study import run_study

    make_plan(spec)  # a mistake in the study file must not leave a run behind
    directory.mkdir(parents=True, exist_ok=True)
    if not resume:  # a resumed study keeps the file it began with
        text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)
        (directory / "study.yaml").write_text(text, "utf-8")
    engine, machine = spec.engine, environment()
    settings = EngineSettings(directory, engine.launcher, engine.launch_timeout, engine.hang_timeout)
    with (
        Store(directory / DATABASE) as store,
        StudyConsole(spec) as console,
        LiveTestbed(settings, machine, console.phase) as testbed,
    ):
        run_study(spec, store, testbed, console, machine, resume)


def _finish(directory: Path) -> None:
    from tuner.console import print_recommendation
    from tuner.deliver import deliver

    results, found = _open(directory)
    print_recommendation(found, deliver(results, found, directory))


def _open(directory: Path, study: Path | None = None) -> tuple[StudyResults, Recommendation]:
    """The results of a run, scored by the SLOs and floors of `study` where one is given."""
    from tuner.recommend import recommend
    from tuner.results import load_results
    from tuner.spec import load_spec
    from tuner.store import Store

    path = directory if directory.suffix == ".db" else directory / DATABASE
    with Store(path, create=False) as store:
        names = store.study_names()
        if not names:
            raise ValueError(f"{path}: holds no study")
        results = load_results(store, names[0], load_spec(study) if study is not None else None)
    return results, recommend(results)


def _remove_earlier(directory: Path) -> None:
    """Delete the files of an earlier run, and no others. Refuses while another process runs the study."""
    from tuner.deliver import FILES
    from tuner.resume import runner_alive
    from tuner.store import Store

    if (directory / DATABASE).exists():
        with Store(directory / DATABASE) as store:
            for name in store.study_names():
                if (owner := runner_alive(store, name)) is not None:
                    raise ValueError(f"{directory}: study {name!r} is being run by {owner}; stop it before --fresh")
    for name in (*OUTPUTS, *FILES):
        (directory / name).unlink(missing_ok=True)


@app.command("recommend")
def recommend_(run: RunArgument, study: StudyOption = None) -> None:
    """Print the best configuration of a run and why. Exit status 3 when none can be deployed."""
    from tuner.console import print_recommendation

    _, found = _open(run, study)
    print_recommendation(found)
    if not found.deployable:
        raise typer.Exit(NOTHING_FEASIBLE)


@app.command()
def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="File to write; default RUN/report.html.")] = None,
    study: StudyOption = None,
) -> None:
    """Write the report of a run: one HTML file that needs no network."""
    from reports.page import write_report

    path = out or (run.parent if run.suffix == ".db" else run) / "report.html"
    write_report(*_open(run, study), path)
    typer.echo(f"wrote {path}")


@app.command()
def export(
    run: RunArgument,
    to: Annotated[str, typer.Option(help="engine or vllm.")],
    out: Annotated[Path, typer.Option(help="Directory for the files.")],
    study: StudyOption = None,
) -> None:
    """Write the recommended configuration for an engine. Exit status 3 when none can be deployed."""
    from tuner.deliver import export_to, refusal

    results, found = _open(run, study)
    if (why := refusal(found)) is not None:
        typer.echo(why, err=True)
        raise typer.Exit(NOTHING_FEASIBLE)
    for path in export_to(to, results, found, out):
        typer.echo(f"wrote {path}")


@app.command()
def record(
    upstream: Annotated[str, typer.Option(help="Server to record in front of, http://HOST:PORT.")],
    out: Annotated[Path, typer.Option(help="Trace file to write; it must not exist.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0: any.")] = "127.0.0.1:0",
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Listen beyond this machine too.")] = False,
) -> None:
    """Record the traffic of a server, as a proxy before it, until Ctrl-C."""
    import asyncio

    from tuner.traffic.recorder import record as record_traffic

    host, separator, port = listen.rpartition(":")
    if not separator or not host or not port.isdigit():
        raise ValueError(f"--listen {listen}: expected HOST:PORT")

    def ready(url: str) -> None:
        typer.echo(f"listening {url}")
        sys.stdout.flush()

    recording = record_traffic(upstream, host.strip("[]"), int(port), out, on_ready=ready, allow_remote=allow_remote)
    done = asyncio.run(recording)
    skipped = "".join(f", {count} {reason}" for reason, count in sorted(done.skipped.items()))
    typer.echo(f"wrote {done.written} requests to {out}{skipped and f' (left out{skipped})'}")


@trace_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="The published trace.")],
    format: Annotated[Literal["azure", "mooncake"], typer.Option(help="Its format.")],
    out: Annotated[Path, typer.Option(help="Trace file to write.")],
    window: Annotated[str | None, typer.Option(help="Seconds of the source, START:END.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many requests.", min=1)] = None,
    length_scale: Annotated[float, typer.Option(help="Factor on prompt and output lengths.")] = 1.0,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    max_output_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    tenant: Annotated[str, typer.Option(help="Tenant of all requests.")] = "default",
    slo_class: Annotated[str, typer.Option(help="SLO class of all requests.")] = "default",
    vocab_size: Annotated[int, typer.Option(help="Prompt tokens are drawn below it.", min=2)] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of the prompt tokens.", min=0)] = 0,
) -> None:
    """Turn a published trace, which tells lengths only, into ours with seeded prompts."""
    from tuner.loadtest import parse_window
    from tuner.traffic.formats import import_trace
    from tuner.traffic.trace_file import save_trace

    start, end = parse_window(window) if window else (0.0, None)
    trace = import_trace(
        file, format, limit=limit, start=start, end=end, seed=seed, tenant=tenant, slo_class=slo_class,
        length_scale=length_scale, max_prompt_tokens=max_prompt_tokens, max_output_tokens=max_output_tokens,
        vocab_size=vocab_size,
    )  # fmt: skip
    save_trace(trace, out)
    typer.echo(f"wrote {len(trace.requests)} requests over {trace.span:.1f} s to {out}")


@app.command()
def replay(
    trace: Annotated[Path, typer.Argument(help="The trace file.")],
    url: Annotated[str | None, typer.Option(help="Server to replay against, http://HOST:PORT.")] = None,
    engine: Annotated[Path | None, typer.Option(help="Start the bundled engine with this file instead.")] = None,
    model: Annotated[str | None, typer.Option(help="Model name at --url; default the first it lists.")] = None,
    time_scale: Annotated[float, typer.Option(help="How many times faster than recorded.")] = 1.0,
    window: Annotated[str | None, typer.Option(help="Seconds of the trace, START:END.")] = None,
    slo: Annotated[list[str] | None, typer.Option(help="Bound such as chat.ttft=0.5; repeatable.")] = None,
    drain_timeout: Annotated[float, typer.Option(help="Seconds after the last arrival.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replay a trace at its recorded times and print what was good, how fast, and the client's own lag."""
    from tuner.console import print_replay
    from tuner.loadtest import parse_slos, parse_window, replay_against_engine, replay_against_url
    from tuner.serving.testbed import Load
    from tuner.traffic.trace_file import load_trace

    if (url is None) == (engine is None):
        raise ValueError("--url and --engine: expected one of them")
    if not time_scale > 0:
        raise ValueError(f"--time-scale {time_scale:g}: expected a number above 0")
    loaded = load_trace(trace)
    cut = loaded.window(*parse_window(window)) if window else loaded
    if cut.span <= 0:
        raise ValueError(f"{trace}: spans no time; give --window START:END in seconds")
    slos = parse_slos(slo or (), cut.slo_classes)
    load = Load(cut.requests, cut.span, window or "all", time_scale, drain_timeout)
    metrics = replay_against_engine(engine, load, slos) if engine else replay_against_url(str(url), model, load, slos)
    if as_json:
        typer.echo(json.dumps(asdict(metrics), indent=2))
    else:
        print_replay(metrics, slos)


def _fail(message: str, status: int) -> None:
    typer.echo(f"tune: {' '.join(message.split())}", err=True)
    raise typer.Exit(status)


if __name__ == "__main__":
    app()
