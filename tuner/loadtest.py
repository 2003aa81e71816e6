"""Replays outside a study: against a server that runs, or one engine started for them; what their options mean."""

from __future__ import annotations

import asyncio
import difflib
import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from engine.config import load_config
from tuner.capacity import Play
from tuner.scored import slo_of
from tuner.scoring.slo import SLO
from tuner.serving.config import ServingConfig
from tuner.serving.remote import first_model, replay_remote
from tuner.serving.testbed import EngineSettings, LiveTestbed, Load
from tuner.spec import SLOSpec, first_problem
from tuner.traffic.exchange import base_url
from tuner.traffic.replay import Replay, Stop


@contextmanager
def server(url: str | None, engine: Path | None, model: str | None = None) -> Iterator[Play]:
    """What replays loads against a server that runs at `url`, or against the bundled engine, started with this
    configuration file and ended on leaving. model: its name at `url`, default the first that it lists.

    Raises ValueError when neither or both are given and when a server does not say what it serves; ServingError. What
    is yielded raises as replay_remote, or as LiveTestbed.measure.
    """
    if (url is None) == (engine is None):
        raise ValueError("--url and --engine: expected one of them")
    if url is not None:
        name = model or asyncio.run(first_model("--url", url))
        yield lambda load, stop: asyncio.run(replay_remote(base_url(url), name, load, stop))
        return
    assert engine is not None
    config = ServingConfig("bundled", load_config(engine).model_dump())
    with (
        tempfile.TemporaryDirectory(prefix="tune-replay-") as directory,
        LiveTestbed(EngineSettings(Path(directory)), {}) as testbed,
    ):

        def play(load: Load, stop: Stop | None) -> Replay:
            done = testbed.measure(config, load, purpose="trial", probes=None, stop=stop)
            return Replay(done.records, done.stopped, done.duration)

        yield play


def parse_slos(given: Iterable[str], classes: Iterable[str]) -> dict[str, SLO]:
    """ "chat.ttft=0.5" and the like, for the classes of a trace; a class without bounds asks for answers only.

    Raises ValueError naming the option, the class or the metric that was expected.
    """
    names = sorted(classes)
    bounds: dict[str, dict[str, float]] = {name: {} for name in names}
    for option in given:
        key, _, value = option.partition("=")
        slo_class, _, metric = key.rpartition(".")
        if slo_class not in bounds:
            near = difflib.get_close_matches(slo_class, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"--slo {option}: expected CLASS.METRIC=VALUE with a class of {', '.join(names)}{hint}")
        if metric not in SLOSpec.model_fields:
            near = difflib.get_close_matches(metric, SLOSpec.model_fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"--slo {option}: expected a metric of {', '.join(SLOSpec.model_fields)}{hint}")
        try:
            bounds[slo_class][metric] = float(value)
        except ValueError:
            raise ValueError(f"--slo {option}: expected a number after '='") from None
    return {name: _slo(name, values) for name, values in bounds.items()}


def _slo(slo_class: str, values: dict[str, float]) -> SLO:
    # Without bounds a good request is one that was answered; a study file, which has to ask for more, refuses that.
    unbounded = values.keys() <= {"attainment"}
    try:
        spec = SLOSpec.model_validate(values | ({"e2e": 1.0} if unbounded else {}))
    except ValidationError as error:
        raise ValueError(f"--slo {slo_class}.{first_problem(error)}") from None
    return SLO(attainment=spec.attainment) if unbounded else slo_of(spec)


def parse_window(text: str) -> tuple[float, float]:
    """ "START:END" in seconds. Raises ValueError."""
    start, separator, end = text.partition(":")
    try:
        window = float(start), float(end)
    except ValueError:
        window = 0.0, 0.0
    if not separator or not 0 <= window[0] < window[1] < math.inf:
        raise ValueError(f"--window {text}: expected START:END with 0 <= START < END (seconds)")
    return window
