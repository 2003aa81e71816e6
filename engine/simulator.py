"""The other runner: LLMEngine on a virtual clock, with step times from a fitted model. Needs no torch and no weights.

Scheduler, block manager, speculation controller and the limits of the queue are the engine's own; what is modelled is
how long a step takes (step_model), which guesses stand (a probability for each position), and what lies between the
step loop and the client (two constants). docs/simulator.md has the formulas.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import msgspec

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.memory import plan_pool
from engine.models.config import ModelConfig, read_model_config
from engine.profile import Profile
from engine.runner import Computed, RowResult
from engine.scheduler import ScheduledSequence
from engine.sequence import SamplingParams, SequenceOutput
from engine.speculative.catching_up import draft_spans
from engine.step_model import NO_DRAFTS, StepCounter, precision
from engine.waiting_room import WaitingRoom

TOKEN = 7
"""What every simulated row says."""
ONE, NONE = RowResult((TOKEN,)), RowResult()
SALT = b"simulated"
MULTIPLIERS = 0x9E3779B1, 0x85EBCA6B


class Arrival(msgspec.Struct, frozen=True):
    """A request of a simulation. at: seconds. output: tokens of its answer, which it is forced to."""

    name: str
    at: float
    prompt: tuple[int, ...]
    output: int
    tenant: str = ""
    priority: int = 0


class Answer(msgspec.Struct):
    """What became of an arrival. times: seconds at which the client got each token. error: "http_4xx" when the engine
    would not take it; None, with fewer tokens than asked for: the simulation ended first."""

    arrival: Arrival
    times: list[float]
    error: str | None = None


class SimulatedRunner:
    """Passes a step's time on a virtual clock. now: seconds. num_blocks: pages, where there is no checkpoint to ask.

    Raises ValueError for a configuration whose precision was not profiled, and for one that buys no page.
    """

    asynchronous = False

    def __init__(self, config: EngineConfig, profile: Profile, num_blocks: int | None = None) -> None:
        self.now = 0.0
        self._profile, self._given_blocks = profile, num_blocks
        shapes = [] if num_blocks is not None else [_shape(name) for name in (config.model, config.draft_model) if name]
        self.max_model_len = config.max_model_len or min(shape.max_positions for shape in shapes)
        self.model_window = shapes[0].window if shapes else None
        self._configure(config)

    def reconfigure(self, config: EngineConfig) -> None:
        """See the class."""
        self._configure(config)

    def _configure(self, config: EngineConfig) -> None:
        model = self._profile.models.get(precision(config))
        if model is None:
            known = ", ".join(sorted(self._profile.models))
            raise ValueError(f"profile: no step times for {precision(config)}, only for {known}")
        self._model, self._config = model, config
        self._counter = StepCounter(config, self.model_window)
        self.num_blocks = (
            _pages(config, self._profile.compute_dtype) if self._given_blocks is None else self._given_blocks
        )
        rates = self._profile.acceptance
        if config.synthetic_acceptance is not None:
            rates = (config.synthetic_acceptance,)
        # Positions beyond those measured are like the last of them.
        self._rates = [rates[min(i, len(rates) - 1)] if rates else 0.0 for i in range(config.num_speculative_tokens)]

    def launch(self, step: list[ScheduledSequence]) -> Computed:
        """Every sampled row says TOKEN; guesses stand by chance, the same chance in every configuration."""
        if not self._rates:
            a, b, c, d, e, f, *_ = self._model.coefficients
            one, rows, sequences, groups, context, pairs = self._counter.target(step, None)
            self.now += a + b * rows + c * sequences + d * groups + e * context + f * pairs
            return Computed([ONE if item.samples else NONE for item in step])
        return Computed(self._speculate(step))

    def _speculate(self, step: list[ScheduledSequence]) -> list[RowResult]:
        computed = [item.sequence.num_draft_computed for item in step]
        if self._config.uses_draft_model:
            spans = draft_spans(step, self._config)
            guessed = [0] * len(step)
            for span in spans:
                computed[span.item] = span.end
                guessed[span.item] = step[span.item].num_drafts if span.ready else 0
            drafted = self._counter.draft(step, spans, guessed)
        else:
            guessed, drafted = [item.num_drafts for item in step], NO_DRAFTS
        self.now += self._model.seconds((*self._counter.target(step, guessed), *drafted))
        return [self._result(*row) for row in zip(step, guessed, computed, strict=True)]

    def _result(self, item: ScheduledSequence, guessed: int, computed: int) -> RowResult:
        if not item.samples:
            return RowResult(num_draft_computed=computed)
        kept = self._stands(item, guessed)
        # As in ModelRunner: the last guess was never an input of the draft model.
        draft_computed = computed + (min(kept + 1, guessed) - 1 if guessed and computed else 0)
        return RowResult((TOKEN,) * (kept + 1), num_drafted=guessed, num_draft_computed=draft_computed)

    def _stands(self, item: ScheduledSequence, guessed: int) -> int:
        sequence, kept = item.sequence, 0
        while kept < guessed and chance(sequence.arrival, sequence.num_tokens + kept) < self._rates[kept]:
            kept += 1
        return kept


def chance(request: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else, so that configurations are compared under the same luck."""
    mixed = (request * MULTIPLIERS[0] + position * MULTIPLIERS[1]) & 0xFFFFFFFF
    mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D & 0xFFFFFFFF
    mixed = (mixed ^ (mixed >> 12)) * 0x297A2D39 & 0xFFFFFFFF
    return (mixed ^ (mixed >> 15)) / 2**32


class Simulation:
    """One configuration under arrivals. until: seconds after which clients wait no longer. hashes: names of blocks by
    request and block size, kept from one simulation of the same prompts to the next.

    following: asked when an answer has ended; the next turn of its session, if there is one.
    """

    def __init__(
        self,
        config: EngineConfig,
        profile: Profile,
        arrivals: Iterable[Arrival],
        *,
        until: float = math.inf,
        following: Callable[[Answer], Arrival | None] = lambda answer: None,
        hashes: dict[tuple[str, int], list[bytes]] | None = None,
    ) -> None:
        self.answers: dict[str, Answer] = {}
        self.ended: list[Answer] = []
        self._runner = SimulatedRunner(config, profile)
        self.engine = SimulatedEngine(config, self._runner, {} if hashes is None else hashes)
        self._config, self._profile = config, profile
        self._until, self._following = until, following
        self._due = [(arrival.at + profile.ingress, order, arrival) for order, arrival in enumerate(arrivals)]
        heapq.heapify(self._due)
        self._limits = config.max_queued_requests is not None or config.max_queued_tokens is not None
        self._room = WaitingRoom(lambda: self._runner.now)

    @property
    def now(self) -> float:
        return self._runner.now

    def offered(self, time: float) -> int:
        """Arrivals up to `time`, whether the step loop has seen them yet or not."""
        return len(self.answers) + sum(arrival.at <= time for _, _, arrival in self._due)

    def run(self, time: float = math.inf) -> bool:
        """Go on to `time`, which the last step may pass. Returns whether anything is left to do."""
        end = min(time, self._until)
        runner, engine = self._runner, self.engine
        while runner.now < end:
            if not engine.has_work():
                if not self._due or self._due[0][0] >= end:
                    break
                runner.now = max(runner.now, self._due[0][0])
            while self._due and self._due[0][0] <= runner.now:
                self._arrive(heapq.heappop(self._due)[2])
            if engine.has_work():
                self._deliver(engine.step())
        return self._until > end and (engine.has_work() or bool(self._due))

    def _deliver(self, outputs: list[SequenceOutput]) -> None:
        time = self._runner.now + self._profile.egress
        if time > self._until:
            return
        if self._limits:
            for name in self.engine.begun:
                self._room.begin(name)
        for output in outputs:
            answer = self.answers[output.request_id]
            if len(output.tokens) == 1:
                answer.times.append(time)
            else:
                answer.times.extend([time] * len(output.tokens))
            if output.finish_reason is not None:
                self._end(answer)

    def _arrive(self, arrival: Arrival) -> None:
        answer = self.answers[arrival.name] = Answer(arrival, [])
        if not self._admit(arrival):
            answer.error = "http_4xx"
            self._end(answer)

    def _admit(self, arrival: Arrival) -> bool:
        """Whether the server takes the request: the queue has room, and the engine can ever run it."""
        if self._limits and self._room.refusal(self._config, self.engine.stats(), len(arrival.prompt)) is not None:
            return False
        try:
            self.engine.enter(arrival)
        except ValueError:
            return False
        if self._limits:
            self._room.enter(arrival.name, len(arrival.prompt))
        return True

    def _end(self, answer: Answer) -> None:
        self.ended.append(answer)
        if (turn := self._following(answer)) is not None:
            heapq.heappush(self._due, (turn.at + self._profile.ingress, len(self.answers), turn))


class SimulatedEngine(LLMEngine):
    """LLMEngine on the runner's clock. hashes: see Simulation."""

    def __init__(
        self, config: EngineConfig, runner: SimulatedRunner, hashes: dict[tuple[str, int], list[bytes]]
    ) -> None:
        super().__init__(config, runner, clock=lambda: runner.now)
        self._hashes = hashes
        if self._blocks.salt is not None:
            self._blocks.salt = SALT  # block names then depend on tokens alone, as one simulation has one salt anyway

    def enter(self, arrival: Arrival) -> None:
        """Queue a request. Raises ValueError as `add` does."""
        prompt = fitted(arrival.prompt, arrival.output, self.max_model_len, self.config)
        params = SamplingParams(max_tokens=arrival.output, ignore_eos=True)
        self.add(arrival.name, prompt, params, arrival.priority, arrival.tenant)
        if self._blocks.salt is not None:
            names = self._hashes.setdefault((arrival.name, self._blocks.block_size), [])
            self._sequences[arrival.name].block_hashes = names


def fitted(prompt: tuple[int, ...], output: int, max_model_len: int, config: EngineConfig) -> tuple[int, ...]:
    """What `prompt_truncation` leaves of a prompt (engine.prompts)."""
    limit = max_model_len - output
    if len(prompt) <= limit or config.prompt_truncation == "refuse" or limit < 1:
        return prompt
    head = limit // 2 if config.prompt_truncation == "keep_head_and_tail" else 0
    return prompt[:head] + prompt[len(prompt) - (limit - head) :]


@cache
def _shape(directory: str) -> ModelConfig:
    return read_model_config(Path(directory))


def _pages(config: EngineConfig, compute_dtype: str) -> int:
    names = [config.model] + ([config.draft_model] if config.uses_draft_model and config.draft_model else [])
    dtype = compute_dtype if config.dtype == "auto" else config.dtype
    return plan_pool(config, [_shape(name) for name in names], dtype).pages
