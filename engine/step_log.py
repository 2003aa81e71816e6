"""What each step computed and took, written to a file as the engine serves: what a step model is fitted to. No torch.

The file is MessagePack, one frame a record: a Setting whenever the configuration changes, a TimedStep for each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from engine.config import EngineConfig
from engine.framing import FrameSplitter, pack
from engine.llm_engine import LLMEngine
from engine.runner import Computed, Pending, RowResult, Runner
from engine.scheduler import ScheduledSequence
from engine.sequence import SequenceOutput
from engine.speculative.catching_up import draft_spans
from engine.step_model import NO_DRAFTS, Counts, StepCounter, precision

Guesses = tuple[tuple[int, int], ...]


class Setting(msgspec.Struct, frozen=True, tag=True):
    """What the steps after it ran under. precision: see step_model. compute_dtype: what dtype auto became."""

    precision: str
    compute_dtype: str


class TimedStep(msgspec.Struct, frozen=True, tag=True):
    """counts: see step_model.COUNTS. seconds: from the end of the step before it, if that left work, to its own, by the
    timer of LoggedEngine.

    guesses: of each verified sequence, how many guesses it had and how many stood.
    """

    counts: Counts
    seconds: float
    guesses: Guesses = ()


_decode = msgspec.msgpack.Decoder(Setting | TimedStep).decode


class CountedRunner:
    """Another runner, and what its steps computed. compute_dtype: what dtype auto became."""

    def __init__(self, runner: Runner, config: EngineConfig, compute_dtype: str, file: IO[bytes]) -> None:
        self._runner, self._file, self._dtype = runner, file, compute_dtype
        self.max_model_len, self.model_window, self.num_blocks = (
            runner.max_model_len,
            runner.model_window,
            runner.num_blocks,
        )
        self.asynchronous = runner.asynchronous
        self._done: list[tuple[Counts, Guesses]] = []
        self._configure(config)

    def _configure(self, config: EngineConfig) -> None:
        self._config, self._counter = config, StepCounter(config, self.model_window)
        self._file.write(pack(Setting(precision(config), self._dtype)))

    def reconfigure(self, config: EngineConfig) -> None:
        self._runner.reconfigure(config)
        self.num_blocks = self._runner.num_blocks
        self._configure(config)

    def launch(self, step: list[ScheduledSequence]) -> Pending:
        """See Runner."""
        if self._config.num_speculative_tokens:
            return self._speculate(step)
        counted: tuple[Counts, Guesses] = (*self._counter.target(step, None), *NO_DRAFTS), ()
        pending = self._runner.launch(step)
        if self.asynchronous:
            return _Noted(pending, lambda: self._done.append(counted))
        self._done.append(counted)
        return pending

    def _speculate(self, step: list[ScheduledSequence]) -> Computed:
        spans = draft_spans(step, self._config) if self._config.uses_draft_model else []
        results = self._runner.launch(step).collect()
        guessed = [result.num_drafted for result in results]
        drafted = self._counter.draft(step, spans, guessed) if spans else NO_DRAFTS
        counts = (*self._counter.target(step, guessed), *drafted)
        self._done.append((counts, _verified(step, results, self._config)))
        return Computed(results)

    def take(self) -> list[tuple[Counts, Guesses]]:
        """What the steps computed that ended since the last call."""
        done, self._done = self._done, []
        return done


class _Noted(NamedTuple):
    """A step in flight. note: what to do when it has landed."""

    pending: Pending
    note: Callable[[], None]

    def collect(self) -> list[RowResult]:
        results = self.pending.collect()
        self.note()
        return results


class LoggedEngine(LLMEngine):
    """LLMEngine that writes each step to a file. timer: seconds that a step is said to take."""

    def __init__(
        self, config: EngineConfig, runner: CountedRunner, file: IO[bytes], timer: Callable[[], float]
    ) -> None:
        super().__init__(config, runner)
        self._counted, self._file, self._timer = runner, file, timer
        self._ended: float | None = None

    def step(self) -> list[SequenceOutput]:
        """See LLMEngine."""
        began = self._timer() if self._ended is None else self._ended
        outputs = super().step()
        now = self._timer()
        steps = self._counted.take()
        if len(steps) == 1:  # of two that landed in one call nobody knows which took how long
            [(counts, guesses)] = steps
            self._file.write(pack(TimedStep(counts, now - began, guesses)))
        self._ended = (now if steps else began) if self.has_work() else None
        if self._ended is None:
            self._file.flush()  # whoever ends this process may not wait for it
        return outputs


def _verified(step: list[ScheduledSequence], results: list[RowResult], config: EngineConfig) -> Guesses:
    """A proposal that prompt lookup did not find counts as guesses that fell, as in speculative.meter."""
    return tuple(
        (item.num_drafts, max(len(result.tokens) - 1, 0))
        for item, result in zip(step, results, strict=True)
        if item.num_drafts and item.sequence.params.forced is None
        if result.num_drafted or not config.uses_draft_model
    )


def read_step_log(path: Path) -> Iterator[Setting | TimedStep]:
    """The records, in order; one that was cut off at the end is left out."""
    yield from map(_decode, FrameSplitter().feed(path.read_bytes()))
