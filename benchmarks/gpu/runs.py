"""Requests through the engine in this process, every token stamped; and an engine of random weights to send them to."""

from __future__ import annotations

import gc
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.model_runner import load_engine
from engine.sequence import SamplingParams


@dataclass(frozen=True)
class Request:
    """prompt: token ids. output: tokens to generate, whatever they are. at: seconds after the start of the run."""

    prompt: list[int]
    output: int
    at: float = 0.0


@dataclass
class Answer:
    """stamps: seconds after the start of the run and tokens, of each step that brought some."""

    request: Request
    stamps: list[tuple[float, int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.stamps)

    @property
    def ttft(self) -> float:
        """Seconds from the scheduled arrival to the first token."""
        return self.stamps[0][0] - self.request.at

    @property
    def latency(self) -> float:
        """Seconds from the scheduled arrival to the last token so far."""
        return self.stamps[-1][0] - self.request.at

    def gaps(self, start: float = 0.0, end: float = float("inf")) -> list[float]:
        """Seconds between one step's tokens and the next's, of those that ended within (start, end]."""
        return [after - before for (before, _), (after, _) in pairwise(self.stamps) if start < after <= end]


@dataclass(frozen=True)
class Run:
    """answers: in the order of arrival. seconds: until the last token. peak_running: most sequences in one step."""

    answers: list[Answer]
    seconds: float
    peak_running: int

    @property
    def tokens_per_s(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds

    def decode_gaps(self) -> list[float]:
        """Seconds of each step in which all decode: after the last prompt, before the first answer's end."""
        start, end = max(a.stamps[0][0] for a in self.answers), min(a.stamps[-1][0] for a in self.answers)
        return self.answers[0].gaps(start, end)

    def decode_rate(self) -> float:
        """Tokens per second of all, after the last prompt and before the first answer's end."""
        start, end = max(a.stamps[0][0] for a in self.answers), min(a.stamps[-1][0] for a in self.answers)
        return sum(count for a in self.answers for at, count in a.stamps if start < at <= end) / (end - start)


def median_run(engine: LLMEngine, requests: Sequence[Request], repeats: int) -> Run:
    """Of `repeats` runs the one that took the median time."""
    runs = sorted((play(engine, requests) for _ in range(repeats)), key=lambda run: run.seconds)
    return runs[len(runs) // 2]


def play(
    engine: LLMEngine,
    requests: Sequence[Request],
    late: Request | None = None,
    enough: Callable[[list[Answer]], bool] = lambda answers: False,
) -> Run:
    """Send each request at its time and step until all are answered, or until `enough`; the rest is aborted then.

    late: sent when all others have their first token, which is then its arrival; its answer is the last.
    """
    answers: list[Answer] = []
    order = sorted(requests, key=lambda request: request.at)
    peak = 0
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    while order or engine.has_work():
        now = time.perf_counter() - start
        while order and order[0].at <= now:
            _send(engine, answers, order.pop(0))
        if not engine.has_work():
            time.sleep(order[0].at - now)
            continue
        outputs = engine.step()
        now = time.perf_counter() - start
        for output in outputs:
            if output.tokens:
                answers[int(output.request_id)].stamps.append((now, len(output.tokens)))
        peak = max(peak, engine.stats().running)
        if late is not None and not order and all(answer.stamps for answer in answers):
            _send(engine, answers, replace(late, at=now))
            late = None
        if enough(answers):
            break
    seconds = time.perf_counter() - start
    drop(engine, len(answers))
    return Run(answers, seconds, peak)


def drop(engine: LLMEngine, count: int) -> None:
    """Abort requests 0 to `count`, and let the step end that is still in flight."""
    for index in range(count):
        engine.abort(str(index))
    while engine.has_work():
        engine.step()


def _send(engine: LLMEngine, answers: list[Answer], request: Request) -> None:
    engine.add(str(len(answers)), request.prompt, SamplingParams(max_tokens=request.output, ignore_eos=True))
    answers.append(Answer(request))


def dummy_engine(shape: dict[str, Any], draft: dict[str, Any] | None = None, **settings: Any) -> LLMEngine:
    """An engine of random weights of that shape, after what earlier ones held was given back."""
    release()
    with tempfile.TemporaryDirectory() as directory:
        for name, values in (("model", shape), ("draft_model", draft)):
            if values is not None:
                path = Path(directory, name)
                path.mkdir()
                (path / "config.json").write_text(json.dumps(values))
                settings[name] = str(path)
        return load_engine(EngineConfig(**{"load_format": "dummy"} | settings))


def release() -> None:
    """Give the memory of engines that nobody holds any more back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Random token ids that every vocabulary here has."""
    generator = random.Random(seed)
    return [[generator.randrange(99) for _ in range(length)] for _ in range(count)]
