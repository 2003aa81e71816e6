"""The commands that measure one server outside a study."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


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
