"""Is speculation lossless through the serving path? Greedy answers with it and without it, domain by domain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuner.scoring.probes import Probe
from tuner.scoring.speculation import DomainSpeculation, Greedy, count
from tuner.serving.api import EngineApi
from tuner.serving.measurement import ACCEPTED, DRAFTED

PROMPTS = 3
"""Of each slice."""
LONGEST_PROMPT_CHARS = 2000
TOKENS, FEW_TOKENS = 24, 4
"""Two lengths of the same answers: their difference is decode steps only."""


@dataclass(frozen=True, slots=True)
class Run:
    """One slice's answers, and what their later tokens took. steps, seconds: of decoding only."""

    answers: tuple[Greedy, ...]
    steps: float
    seconds: float
    drafted: int
    accepted: int


def domains(probes: Sequence[Probe]) -> dict[str, list[Probe]]:
    """The first PROMPTS probes with short prompts of each slice that has as many."""
    found: dict[str, list[Probe]] = {}
    for probe in probes:
        if isinstance(probe.prompt, str) and len(probe.prompt) <= LONGEST_PROMPT_CHARS:
            found.setdefault(probe.slice, []).append(probe)
    return {name: members[:PROMPTS] for name, members in found.items() if len(members) >= PROMPTS}


async def decode(api: EngineApi, model: str, probes: Sequence[Probe]) -> dict[str, Run]:
    """Greedy answers of each domain under the running configuration."""
    return {name: await _decode(api, model, members) for name, members in domains(probes).items()}


def compare(depth: int, speculating: dict[str, Run], plain: dict[str, Run]) -> tuple[DomainSpeculation, ...]:
    """depth: guesses a step. What a step takes is measured over all domains: a single one's steps are too few."""
    step, plain_step = (
        sum(run.seconds for run in runs.values()) / sum(run.steps for run in runs.values())
        for runs in (speculating, plain)
    )
    found = []
    for name, with_ in speculating.items():
        equal, tied = count(list(zip(with_.answers, plain[name].answers, strict=True)))
        answers = len(with_.answers)
        found.append(
            DomainSpeculation(name, answers, equal, tied, depth, with_.drafted, with_.accepted, step, plain_step)
        )
    return tuple(found)


async def _decode(api: EngineApi, model: str, probes: Sequence[Probe]) -> Run:
    few = await _timed(api, model, probes, FEW_TOKENS)
    whole = await _timed(api, model, probes, TOKENS)
    steps, seconds = max(whole.steps - few.steps, 1.0), max(whole.seconds - few.seconds, 1e-6)
    return replace(whole, steps=steps, seconds=seconds)


async def _timed(api: EngineApi, model: str, probes: Sequence[Probe], tokens: int) -> Run:
    before, start = await api.counters(), time.monotonic()
    answers = await asyncio.gather(*(_greedy(api, model, probe, tokens) for probe in probes))
    seconds, after = time.monotonic() - start, await api.counters()
    steps, drafted, accepted = (after.get(name, 0.0) - before.get(name, 0.0) for name in ("steps", DRAFTED, ACCEPTED))
    return Run(tuple(answers), steps, seconds, int(drafted), int(accepted))


async def _greedy(api: EngineApi, model: str, probe: Probe, tokens: int) -> Greedy:
    body: dict[str, Any] = {"model": model, "prompt": probe.prompt, "max_tokens": tokens, "temperature": 0.0}
    body |= {"ignore_eos": True, "logprobs": 2, "return_token_ids": True}
    choice = (await api.post("/v1/completions", body))["choices"][0]
    tops = [sorted(top.values(), reverse=True) for top in choice["logprobs"]["top_logprobs"]]
    return Greedy(tuple(choice["token_ids"]), tuple(top[0] - top[1] if len(top) > 1 else 0.0 for top in tops))
