"""The commands that measure one server outside a study."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.interrupt import INTERRUPTED
from tuner.cli.server_url import http_url
from tuner.cli.study import stopping

if TYPE_CHECKING:
    from types import FrameType

    from tuner.scoring.slo import SLO
    from tuner.serving.testbed import Load
    from tuner.traffic.replay import Replay, Stop
    from tuner.traffic.trace import RequestRecord

TraceArgument = Annotated[Path, typer.Argument(help="The trace file.")]
UrlOption = Annotated[str | None, typer.Option(help="Server to replay against, http://HOST:PORT.", callback=http_url)]
EngineOption = Annotated[Path | None, typer.Option(help="Start the bundled engine with this file instead.")]
ModelOption = Annotated[str | None, typer.Option(help="Model name at --url; default the first it lists.")]
WindowOption = Annotated[str | None, typer.Option(help="Seconds of the trace, START:END.")]
SloOption = Annotated[list[str] | None, typer.Option(help="Bound such as chat.ttft=0.5; repeatable.")]
DrainOption = Annotated[float, typer.Option(help="Seconds after the last arrival.")]
ScaleOption = Annotated[float, typer.Option(help="How many times faster than recorded.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def replay(
    trace: TraceArgument,
    url: UrlOption = None,
    engine: EngineOption = None,
    model: ModelOption = None,
    time_scale: ScaleOption = 1.0,
    window: WindowOption = None,
    slo: SloOption = None,
    drain_timeout: DrainOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Replay a trace at its recorded times and print what was good, how fast, and the client's own lag. After Ctrl-C,
    of what was answered by then.

    Example: tune replay trace.jsonl --url http://127.0.0.1:8000 --slo chat.ttft=0.3
    """
    from tuner.console import print_replay
    from tuner.loadtest import server
    from tuner.scoring.doubts import doubts
    from tuner.scoring.metrics import traffic_metrics
    from tuner.serving.remote import ServerLost

    load, slos = _load(trace, window, time_scale, drain_timeout, slo)
    lost = None
    with interruptible() as stop, server(url, engine, model) as play:
        try:
            done = play(load, stop)
        except ServerLost as error:
            done, lost = error.replay, error
    records, stopped = _ended(done)
    metrics = traffic_metrics(records, slos, done.duration)
    doubted = doubts(records, metrics, slos, stopped)
    if as_json:
        _print_json(asdict(metrics) | {"doubts": [asdict(doubt) for doubt in doubted]})
    else:
        print_replay(metrics, slos, doubted)
    if lost is not None:
        raise lost
    if stopped is not None:
        raise typer.Exit(INTERRUPTED)


@contextmanager
def interruptible() -> Iterator[Stop]:
    """A reason to stop a replay from the first Ctrl-C or SIGTERM on; the second waits for nothing."""
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda progress: "interrupted" if asked else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ended(done: Replay) -> tuple[tuple[RequestRecord, ...], str | None]:
    """The requests whose end a replay saw, and why it was stopped. Raises KeyboardInterrupt when it saw none."""
    if done.stopped is None:
        return done.records, None
    ended = tuple(record for record in done.records if record.error not in ("stopped", "not_sent"))
    if not ended:
        raise KeyboardInterrupt
    open_ = sum(record.error == "stopped" for record in done.records)
    return ended, f"{done.stopped} after {done.duration:.1f} s; {open_} requests in flight are left out"


def capacity(
    trace: TraceArgument,
    url: UrlOption = None,
    engine: EngineOption = None,
    model: ModelOption = None,
    window: WindowOption = None,
    slo: SloOption = None,
    precision: Annotated[float, typer.Option(help="Widest interval to end with, high / low - 1.")] = 0.2,
    replays: Annotated[int, typer.Option(help="At most so many replays.", min=1)] = 16,
    drain_timeout: DrainOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Find how much faster than recorded a trace can be replayed before its SLOs break, and what breaks first.
    After Ctrl-C, as far as the replays by then tell.

    Example: tune capacity trace.jsonl --url http://127.0.0.1:8000 --slo chat.ttft=0.3
    """
    from tuner.capacity import find_capacity
    from tuner.console import print_capacity, print_tried
    from tuner.loadtest import server

    if not slo:
        raise ValueError("--slo: expected at least one, such as --slo chat.ttft=0.5; without it nothing can break")
    if not precision > 0:
        raise ValueError(f"--precision {precision:g}: expected a number above 0, such as 0.1")
    load, slos = _load(trace, window, 1.0, drain_timeout, slo)
    with stopping(), server(url, engine, model) as play:
        found = find_capacity(load, slos, play, precision=precision, replays=replays, on_tried=print_tried)
    if as_json:
        _print_json({**asdict(found), "requests": found.requests})
    else:
        print_capacity(found)
    if any(doubt.name == "interrupted" for doubt in found.doubts):
        raise typer.Exit(INTERRUPTED)


def fairness(
    trace: TraceArgument,
    url: UrlOption = None,
    engine: EngineOption = None,
    model: ModelOption = None,
    time_scale: ScaleOption = 1.0,
    window: WindowOption = None,
    slo: SloOption = None,
    long_prompt_tokens: Annotated[
        int | None, typer.Option(help="From which length a prompt is long; default 4 times the median.", min=1)
    ] = None,
    drain_timeout: DrainOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Replay a trace, each tenant of it alone, and all without the long prompts: who waits for whom?

    Example: tune fairness trace.jsonl --url http://127.0.0.1:8000 --slo chat.ttft=0.3
    """
    from tuner.console import print_fairness, print_step
    from tuner.fairness import measure_fairness
    from tuner.loadtest import server

    load, slos = _load(trace, window, time_scale, drain_timeout, slo)
    with stopping(), server(url, engine, model) as play:
        found = measure_fairness(load, slos, play, long_prompt_tokens=long_prompt_tokens, on_replay=print_step)
    if as_json:
        _print_json({**asdict(found), "fair": found.fair})
    else:
        print_fairness(found)


def _print_json(values: Any) -> None:
    typer.echo(json.dumps(_finite(values), indent=2))


def _finite(values: Any) -> Any:
    """JSON has no infinity: null."""
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _load(
    trace: Path, window: str | None, time_scale: float, drain_timeout: float, slo: list[str] | None
) -> tuple[Load, dict[str, SLO]]:
    """The traffic of these options and the SLOs of its classes. Raises ValueError naming the option."""
    from tuner.loadtest import parse_slos, parse_window
    from tuner.serving.testbed import Load
    from tuner.traffic.trace_file import load_trace

    if not 0 < time_scale < math.inf:
        raise ValueError(f"--time-scale {time_scale:g}: expected a number above 0")
    if not 0 <= drain_timeout < math.inf:
        raise ValueError(f"--drain-timeout {drain_timeout:g}: expected seconds from 0 on")
    cut = loaded = load_trace(trace)
    if window:
        start, end = parse_window(window)
        if not any(start <= request.arrival < end for request in loaded.requests):
            raise ValueError(f"--window {window}: {trace} holds no request there; it spans {loaded.span:g} s")
        cut = loaded.window(start, end)
    if cut.span <= 0:
        raise ValueError(f"{trace}: spans no time; give --window START:END in seconds")
    slos = parse_slos(slo or (), cut.slo_classes)
    return Load(cut.requests, cut.span, window or "all", time_scale, drain_timeout), slos
