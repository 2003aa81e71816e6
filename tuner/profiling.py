"""The profile of a study: a few short replays on the real engine, each step timed, for every precision of the space."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.profile import Profile, profile_of
from engine.step_log import read_step_log
from search_spaces.space import ChoiceParameter, IntParameter, SearchSpace
from tuner.errors import ServingError
from tuner.plan import Plan
from tuner.serving import adapters
from tuner.serving.config import ServingConfig
from tuner.serving.testbed import EngineSettings, LiveTestbed, Load

REQUESTS = 48
SECONDS = 1.2
"""A profiling replay offers REQUESTS of the traffic in so many seconds, or in their own time if that is less."""
CHUNK = 48
PRECISION_KNOBS = ("model", "weight_dtype", "kv_cache_dtype")


def profiled_knobs(space: SearchSpace, baseline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Knobs of the replays: each precision of the space, and two of them also in chunks and at full depth.

    What a chunk or a guess costs beyond its reading is common to all precisions (step_model.OWN).
    """
    choices: list[list[tuple[str, Any]]] = []
    for name in PRECISION_KNOBS:
        parameter = space.parameters.get(name)
        if isinstance(parameter, ChoiceParameter):
            choices.append([(name, value) for value in parameter.choices])
    depth = space.parameters.get("num_speculative_tokens")
    deepest = depth.high if isinstance(depth, IntParameter) else 0
    if isinstance(depth, ChoiceParameter):
        deepest = max(value for value in depth.choices if isinstance(value, int))
    precisions = [dict(precision) for precision in itertools.product(*choices)]
    roomy = {**baseline, "max_num_seqs": 64, "num_speculative_tokens": 0, "prefill_chunk_size": None}
    roomy["max_num_batched_tokens"] = max(int(baseline.get("max_num_batched_tokens", 512)), 64)
    found = [{**roomy, **precision} for precision in precisions]
    for precision in precisions[:1] + precisions[1:][-1:]:
        found.append({**roomy, **precision, "prefill_chunk_size": CHUNK})
        if deepest:
            found.append({**roomy, **precision, "num_speculative_tokens": deepest})
    return found


def plan_profile(settings: EngineSettings, plan: Plan) -> Profile:
    """The profile that a study's simulator needs; see take_profile."""
    configs = [plan.config(knobs) for knobs in profiled_knobs(plan.space, plan.baseline)]
    apart = replace(settings, directory=settings.directory / "profile")
    return take_profile(apart, configs, profiling_load(plan.load("tune", 1.0)))


def profiling_load(load: Load) -> Load:
    """REQUESTS of a load, evenly drawn so that lengths and what a draft model guesses are those of the load. They come
    one after the other, each at its time but quicker."""
    drawn = load.requests[:: max(len(load.requests) // REQUESTS, 1)][:REQUESTS]
    requests = tuple(replace(request, session=None, think_time=None) for request in drawn)
    span = max(requests[-1].arrival, 1e-3)
    return Load(requests, span, load.window, max(span / SECONDS, 1.0), load.drain_timeout)


def take_profile(settings: EngineSettings, configs: Sequence[ServingConfig], load: Load) -> Profile:
    """Replay `load` under each of `configs` on a logged engine of its own, there and back: a machine that grows slower
    meanwhile must not make those slow that come last. Those that the engine refuses are left out.

    Raises ValueError where too few steps ran, ServingError where the engine cannot be started.
    """
    log = settings.directory / "steps.log"
    launcher = (*(settings.launcher or adapters.BUNDLED_COMMAND), "--step-log", str(log))
    refused: list[ServingError] = []
    with LiveTestbed(replace(settings, launcher=launcher), {}) as testbed:
        for config in (*configs, *reversed(configs)):
            try:
                testbed.measure(config, load, purpose="trial", probes=None, stop=None)
            except ServingError as error:
                refused.append(error)
    if not log.exists():
        raise refused[0]
    return profile_of(read_step_log(log))
