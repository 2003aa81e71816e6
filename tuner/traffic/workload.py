"""Made traffic: arrival times and lengths, divided among tenants and classes, as a trace of lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tuner.traffic.facts import facts_of
from tuner.traffic.importers.importer import import_trace
from tuner.traffic.importers.options import ImportOptions
from tuner.traffic.lengths import Fixed, Lognormal, resampled
from tuner.traffic.trace_lines import VERSION, HeaderLine, RequestLine, TraceLines, TraceReader

ARRIVALS, LENGTHS, TENANTS, CLASSES = range(4)
"""Streams of random numbers: changing one thing about a workload leaves the others as they were."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Names with the weights by which requests are divided among them."""

    weights: Mapping[str, float] = field(default_factory=lambda: {"default": 1.0})

    def draw(self, count: int, rng: np.random.Generator) -> list[str]:
        weights = np.array(list(self.weights.values()))
        names = list(self.weights)
        return [names[place] for place in rng.choice(len(names), size=count, p=weights / weights.sum()).tolist()]


def stream(seed: int, purpose: int) -> np.random.Generator:
    """The random numbers of one purpose."""
    return np.random.default_rng([seed, purpose])


Lengths = tuple[Sequence[int], Sequence[int]]
"""Prompts and answers of as many requests, tokens."""


def drawn_lengths(prompt: Lognormal | Fixed, output: Lognormal | Fixed, count: int, seed: int) -> Lengths:
    """Independent lengths of prompts and answers."""
    rng = stream(seed, LENGTHS)
    return prompt.draw(count, rng).tolist(), output.draw(count, rng).tolist()


def lengths_from(path: Path, count: int, seed: int) -> Lengths:
    """Lengths drawn from the requests of another trace, prompt and answer together. Raises ValueError."""
    reader = TraceReader(path)
    facts = (facts_of(line, reader.header.hash_block_tokens, b"") for line in reader)
    pairs = [(one.prompt_tokens, one.output_tokens) for one in facts if one.output_tokens is not None]
    if not pairs:
        raise ValueError(f"{path}: no request tells the length of its answer")
    prompts, outputs = resampled(pairs, count, stream(seed, LENGTHS))
    return prompts.tolist(), outputs.tolist()


def made_trace(
    arrivals: Sequence[float],
    seconds: float,
    lengths: Lengths,
    tenants: Shares,
    classes: Shares,
    seed: int,
    provenance: dict[str, Any],
) -> TraceLines:
    """Requests at `arrivals` (seconds in [0, seconds), ascending) with the lengths in tokens; answers have at least one
    token. Raises ValueError where there are none."""
    if len(arrivals) == 0:
        raise ValueError(f"no request arrives in {seconds:g} s; expected a higher rate or more seconds")
    count = len(arrivals)
    rows = zip(
        arrivals, *lengths, tenants.draw(count, stream(seed, TENANTS)), classes.draw(count, stream(seed, CLASSES)),
        strict=True,
    )  # fmt: skip
    lines = [
        RequestLine(
            id=f"s{number:06d}",
            arrival=arrival,
            max_tokens=max(1, output),
            tenant=tenant,
            slo_class=slo_class,
            prompt_tokens=max(1, prompt),
            output_tokens=max(1, output),
        )
        for number, (arrival, prompt, output, tenant, slo_class) in enumerate(rows, start=1)
    ]
    return TraceLines(HeaderLine(VERSION, provenance, seconds), lines)


def parse_shares(option: str, given: Sequence[str]) -> Shares:
    """ "NAME=WEIGHT" or "NAME", weight 1. Raises ValueError naming the option."""
    weights: dict[str, float] = {}
    for text in given:
        name, separator, weight = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = 0.0
        if not name or not 0 < weights[name] < 1e9:
            raise ValueError(f"{option} {text}: expected NAME=WEIGHT with a weight above 0")
    return Shares(weights) if weights else Shares()


def servegen_window(path: Path, start: float, end: float, seed: int) -> tuple[Sequence[float], Lengths]:
    """Arrivals and lengths of ServeGen's client windows in seconds [start, end) of chunk-N-trace.csv, realised as
    `tune trace import` does. Raises ValueError."""
    options = ImportOptions(start=start, end=end, seed=seed)
    requests = import_trace(path, "servegen", options).trace.requests
    prompts = [request.prompt_tokens or 1 for request in requests]
    outputs = [request.output_tokens or 1 for request in requests]
    return [request.arrival for request in requests], (prompts, outputs)
