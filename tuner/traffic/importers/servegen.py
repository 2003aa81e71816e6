"""ServeGen's client windows (arXiv 2505.09999; github.com/alibaba/ServeGen, data/*/*/chunk-N-trace.csv), made requests.

chunk-N-trace.csv, no header: window start (s), rate (1/s), CV, family of the gaps (Gamma, Weibull, or empty), two
parameters (shape, scale); windows of 600 s. chunk-N-dataset.json beside it: window start -> {input_tokens,
output_tokens: "{length: probability}"}, values as text that looks like a Python dict and is read as a literal, never
run.

A window holds round(rate x 600) requests, as many as were counted; their gaps are drawn from the family with the
recorded shape and stretched so that they fill the window: fitted scales miss the counted rate by up to a factor of a
thousand where the tail is heavy. Each window is drawn from the seed and its start alone, so cutting others off changes
nothing.
"""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tuner.traffic.importers import values
from tuner.traffic.importers.row import BadLine, Row
from tuner.traffic.importers.source import Source

WINDOW_SECONDS = 600
MOST_A_WINDOW = 10_000_000
FAMILIES = ("", "Gamma", "Weibull")
LENGTHS = ("input_tokens", "output_tokens")
_REQUESTS = 4


class Window(NamedTuple):
    """start in seconds; rate per second; shape of the family."""

    number: int
    start: int
    rate: float
    family: str
    shape: float


class Lengths(NamedTuple):
    tokens: NDArray[np.int64]
    probability: NDArray[np.float64]


def read(source: Source) -> Iterator[Row]:
    options = source.options
    if options.end is None and options.limit is None:
        raise ValueError(
            "--window START:END or --limit: expected one, for the windows of weeks hold millions of requests"
        )
    path, datasets = _datasets(source)
    parsed: dict[tuple[int, str], Lengths] = {}
    found = 0
    for window in sorted(source.rows(_records(source), _window), key=lambda window: window.start):
        past = options.end is not None and window.start >= options.end
        if past or window.start + WINDOW_SECONDS <= options.start or window.rate == 0:
            continue
        if options.limit is not None and found >= options.limit:
            break
        known = max((start for start in datasets if start <= window.start), default=min(datasets))
        for key in LENGTHS:
            if (known, key) not in parsed:
                parsed[known, key] = _lengths(f"{path}: {known}.{key}", datasets[known].get(key))
        for row in _realised(window, parsed[known, LENGTHS[0]], parsed[known, LENGTHS[1]], options.seed):
            assert row.arrival is not None
            found += row.arrival >= options.start * 1e9
            yield row


def _records(source: Source) -> Iterator[tuple[int, list[str]]]:
    for number, line in source.lines():
        yield number, next(csv.reader([line.decode("utf-8", errors="surrogateescape")]), [])


def _window(number: int, record: list[str]) -> Window:
    if len(record) != 6:
        raise BadLine("expected six columns: window start, rate, CV, family, two parameters")
    start = values.nanoseconds(record[0], "s", "window start") // 10**9
    rate = values.nanoseconds(record[1], "s", "rate") / 1e9
    shape = values.nanoseconds(record[4], "s", "shape") / 1e9
    if record[3] not in FAMILIES:
        raise BadLine("family: expected Gamma, Weibull or nothing")
    if not 0 <= rate * WINDOW_SECONDS <= MOST_A_WINDOW or (record[3] and shape < 1e-3) or start < 0:
        raise BadLine(f"expected a rate from 0 to {MOST_A_WINDOW // WINDOW_SECONDS} and a shape above 0.001")
    return Window(number, start, rate, record[3], shape)


def _realised(window: Window, prompts: Lengths, answers: Lengths, seed: int) -> Iterator[Row]:
    rng = np.random.default_rng([seed, _REQUESTS, window.start])
    count = round(window.rate * WINDOW_SECONDS)
    if window.family == "Weibull":
        gaps = rng.weibull(window.shape, size=count + 1)
    else:
        gaps = rng.gamma(window.shape if window.family else 1.0, size=count + 1)
    times = np.cumsum(gaps)[:-1] / gaps.sum() * WINDOW_SECONDS
    inputs = rng.choice(prompts.tokens, size=count, p=prompts.probability)
    outputs = rng.choice(answers.tokens, size=count, p=answers.probability)
    for time, tokens, output in zip(times.tolist(), inputs.tolist(), outputs.tolist(), strict=True):
        yield Row(window.number, window.start * 10**9 + round(time * 1e9), None, tokens, output)


def _datasets(source: Source) -> tuple[Path, dict[int, Mapping[str, Any]]]:
    """The dataset beside the trace, and its windows: start -> lengths, as text."""
    name = source.path.name.removesuffix(".gz").removesuffix("-trace.csv") + "-dataset.json"
    path = next((p for p in (source.path.with_name(name + end) for end in ("", ".gz")) if p.exists()), None)
    if path is None:
        raise ValueError(f"{source.path}: expected its lengths beside it, in {name} or {name}.gz")
    content = source.document(path)
    try:
        document = msgspec.json.decode(content, type=dict[str, dict[str, str]])
        datasets: dict[int, Mapping[str, Any]] = {int(start): lengths for start, lengths in document.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        raise ValueError(f"{path}: expected one JSON object, window start -> lengths as text") from None
    if not datasets:
        raise ValueError(f"{path}: holds no window")
    return path, datasets


def _lengths(where: str, text: Any) -> Lengths:
    try:
        pairs = sorted((int(tokens), float(share)) for tokens, share in ast.literal_eval(text).items())
        tokens, shares = np.array([p[0] for p in pairs], dtype=np.int64), np.array([p[1] for p in pairs])
    except (ValueError, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError, OverflowError):
        raise ValueError(f"{where}: expected a text as {{length: probability}}") from None
    if not pairs or tokens.min() < 0 or not (shares >= 0).all() or not 0.5 < shares.sum() < 1.5:
        raise ValueError(f"{where}: expected lengths from 0 on with probabilities that sum to 1")
    return Lengths(tokens, shares / shares.sum())
