"""LLMEngine: add, step, abort, reconfigure. It schedules; the runner that it is given computes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ids
from itertools import starmap

from engine.config import EngineConfig, knobs
from engine.in_flight import InFlight, needs_host, reveal
from engine.kv_cache import BlockManager, narrower
from engine.runner import RowResult, Runner
from engine.scheduler import ScheduledSequence, Scheduler, step_load
from engine.sequence import UNKNOWN, EngineStats, FinishReason, SamplingParams, Sequence, SequenceOutput
from engine.speculative.meter import SpeculationMeter

log = logging.getLogger("servetune.engine")

TOKEN_TO_COME, NO_TOKEN = RowResult((UNKNOWN,)), RowResult()
"""A row of a step in flight, that samples or does not."""


class LLMEngine:
    """One model being served. Not thread-safe; the step loop owns it.

    clock: seconds, monotonic. begun: ids of the requests that left the queue for the first time in the last step.
    """

    def __init__(self, config: EngineConfig, runner: Runner, clock: Callable[[], float] = time.perf_counter) -> None:
        self.config = config
        self._clock = clock
        self._speculation = SpeculationMeter(config)
        self.max_model_len = runner.max_model_len
        self._runner = runner
        self._sequences: dict[str, Sequence] = {}
        self._arrivals = 0
        self.begun: list[str] = []
        self._steps = self._prompt_tokens = self._generation_tokens = 0
        self._retired = EngineStats()
        self._in_flight: InFlight | None = None
        self._step_ended = -math.inf
        self._build()

    def _build(self) -> None:
        config = self.config
        if config.synthetic_acceptance is not None:
            log.warning(
                "synthetic_acceptance %g: guesses stand by chance, so the text is not the model's; measure speed only",
                config.synthetic_acceptance,
            )
        visible = narrower(config.kv_window, config.kv_sink_tokens, self._runner.model_window)
        self._blocks = BlockManager(
            self._runner.num_blocks, config.block_size, *visible, _prefix_salt(config), config.kv_heavy_tokens
        )
        self._scheduler = Scheduler(config, self._blocks, self.max_model_len)
        self._counts_service = self._scheduler.policy.counts_service
        asked = config.async_scheduling
        self._overlaps = self._runner.asynchronous if asked is None else asked
        # Without either, pages come and go with their sequence alone.
        self._pages_change = self._blocks.window is not None or config.enable_prefix_caching

    def add(
        self, request_id: str, prompt: Ids[int], params: SamplingParams, priority: int = 0, tenant: str = ""
    ) -> None:
        """Queue a request. Raises ValueError (one line) when it can never run with this configuration.

        priority: lower goes first under the policy of that name. tenant: charged for it under `fair`.
        """
        if request_id in self._sequences:
            raise ValueError(f"request_id: {request_id!r} is already in flight")
        # Requests without a seed get one each, by their order: the same prompt twice is two samples.
        seed = self.config.seed + (self._arrivals << 32) if params.seed is None else params.seed
        sequence = Sequence(request_id, tuple(prompt), params, self._arrivals, seed, priority, tenant)
        self._scheduler.add(sequence)
        self._arrivals += 1
        self._sequences[request_id] = sequence

    def abort(self, request_id: str) -> None:
        """Forget a request; unknown ids are ignored, since a finish and an abort may cross."""
        if (sequence := self._sequences.pop(request_id, None)) is not None:
            self._scheduler.remove(sequence)

    def has_work(self) -> bool:
        """Whether `step` has anything to do; what a step in flight found counts."""
        return bool(self._sequences) or self._in_flight is not None

    def step(self) -> list[SequenceOutput]:
        """One forward pass over the scheduled batch; the new tokens of each request that got some.

        With async_scheduling the pass is launched and the tokens are those of the pass before it, which ran meanwhile,
        unless the host must have the results before it can go on: then they are of both.
        """
        began = self._clock()
        self._scheduler.depth = self._speculation.choose_depth(len(self._scheduler.decodes))
        step = self._scheduler.schedule()
        self.begun = [sequence.request_id for sequence in self._scheduler.newcomers]
        if not step:
            return self._land()
        self._steps += 1
        launched = self._clock()
        flight = InFlight(step, self._runner.launch(step), began, launched)
        outputs = self._land()
        ahead = self._overlaps and not needs_host(step, self.config)
        if ahead:
            self._take_off(flight)
        else:
            outputs += self._finish(flight)
        if not (ahead and self._runner.asynchronous):
            self._record(flight)
        return outputs

    def _finish(self, flight: InFlight) -> list[SequenceOutput]:
        """Wait for a step; what it found, counted and told."""
        step, results = flight.step, flight.pending.collect()
        assert len(results) == len(step), "one result for each scheduled sequence"
        if self.config.num_speculative_tokens:
            guessed, accepted = [r.num_drafted for r in results], [len(r.tokens) - 1 for r in results]
            self._speculation.observe(step, guessed, accepted, self._clock() - flight.launched)
        rows: Iterable[tuple[ScheduledSequence, RowResult]] = zip(step, results, strict=True)
        if self._overlaps:  # the step before may have ended a sequence after this one was scheduled
            rows = [row for row in rows if self._is_live(row[0].sequence)]
        return [output for output in starmap(self._advance, rows) if output is not None]

    def _take_off(self, flight: InFlight) -> None:
        """Count a step whose tokens are to come, so that the next one can be scheduled."""
        for item in flight.step:
            if self._is_live(item.sequence):
                self._advance(item, TOKEN_TO_COME if item.samples else NO_TOKEN)
        self._in_flight = flight

    def _land(self) -> list[SequenceOutput]:
        """Wait for the step in flight, if there is one, and put its tokens in their places."""
        if (flight := self._in_flight) is None:
            return []
        self._in_flight = None
        rows = zip(flight.step, flight.pending.collect(), strict=True)
        if self._runner.asynchronous:
            self._record(flight)
        return [self._reveal(*row) for row in rows if row[0].samples and self._is_live(row[0].sequence)]

    def _reveal(self, item: ScheduledSequence, result: RowResult) -> SequenceOutput:
        """A token of a step that was counted before: only a stop token is news to the schedule."""
        sequence = item.sequence
        reason = reveal(item, result.tokens)
        if reason is not None:
            self._scheduler.remove(sequence)
            del self._sequences[sequence.request_id]
        found = result.logprobs, result.top_logprobs
        return SequenceOutput(sequence.request_id, result.tokens, *found, finish_reason=reason)

    def _is_live(self, sequence: Sequence) -> bool:
        """Whether somebody still waits for its tokens."""
        return self._sequences.get(sequence.request_id) is sequence

    def _record(self, flight: InFlight) -> None:
        """Learn how long a step took: from its beginning, or from the end of the step before, if that came later.

        It ends with the call that launched it or, where the device computes on its own, when its tokens are there.
        """
        if self.config.itl_target is not None:
            now = self._clock()
            self._scheduler.step_times.record(step_load(flight.step), now - max(flight.began, self._step_ended))
            self._step_ended = now

    def _advance(self, item: ScheduledSequence, result: RowResult) -> SequenceOutput | None:
        sequence = item.sequence
        tokens, count = result.tokens, len(result.tokens)
        end = item.start + item.num_tokens
        if (left := len(sequence.prompt) - item.start) > 0:
            self._prompt_tokens += min(item.num_tokens, left)
        sequence.num_computed = end + count - 1 if count else end
        sequence.num_draft_computed = result.num_draft_computed
        if not count:
            self._settle(sequence, result.page_masses)
            return None
        tokens, reason = _until_finish(sequence, tokens)
        count = len(tokens)
        sequence.append(tokens)
        if self._counts_service:
            self._scheduler.policy.served(sequence, count)
        self._generation_tokens += count
        if self._pages_change:
            self._settle(sequence, result.page_masses)
        if reason is not None:
            self._scheduler.remove(sequence)
            if tokens[-1] != UNKNOWN:
                del self._sequences[sequence.request_id]
        elif not (result.logprobs or result.num_drafted):
            return SequenceOutput(sequence.request_id, tokens)  # nearly always
        return SequenceOutput(
            sequence.request_id,
            tokens,
            result.logprobs[:count],
            result.top_logprobs[:count],
            # Only of forced tokens, which neither end early nor are more than were asked for.
            result.listed_ids,
            result.listed_logprobs,
            reason,
            result.num_drafted,
            len(result.tokens) - 1 if result.num_drafted else 0,
        )

    def _settle(self, sequence: Sequence, page_masses: tuple[float, ...]) -> None:
        """Publish what is whole, then free what no later query sees."""
        whole = min(sequence.num_computed, sequence.num_tokens)
        if self.config.uses_draft_model:
            # A page serves both models, and the draft model comes after the target, if at all.
            whole = min(whole, sequence.num_draft_computed)
        self._blocks.publish(sequence, whole)
        if page_masses:
            self._blocks.weigh(sequence, page_masses)
        self._blocks.evict(sequence, sequence.num_computed)

    def reconfigure(self, config: EngineConfig) -> None:
        """Apply `config`; weights stay loaded. Raises ValueError with requests in flight or if a restart is needed."""
        cost = self.config.cost_of(config)
        if cost == "process":
            raise ValueError("reconfiguration: needs a new engine process")
        if self._sequences:
            raise ValueError(f"reconfiguration: {len(self._sequences)} requests are in flight")
        self._land()  # rows of aborted requests
        if cost is not None:
            self._runner.reconfigure(config)
        self._retired = self.stats()
        self.config = config
        self._speculation.configure(config)
        self._build()

    def stats(self) -> EngineStats:
        retired, blocks = self._retired, self._blocks
        return EngineStats(
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            blocks_total=blocks.num_blocks,
            blocks_free=blocks.num_free,
            preemptions=retired.preemptions + self._scheduler.preemptions,
            evicted_blocks=retired.evicted_blocks + blocks.evicted_blocks,
            prefix_cache_queries=retired.prefix_cache_queries + blocks.prefix_cache_queries,
            prefix_cache_hits=retired.prefix_cache_hits + blocks.prefix_cache_hits,
            drafts=self._speculation.drafts,
            draft_tokens=self._speculation.draft_tokens,
            accepted_tokens=self._speculation.accepted_tokens,
            accepted_tokens_per_pos=tuple(self._speculation.accepted_per_position),
            spec_depth=self._speculation.depth,
            spec_fallbacks=self._speculation.fallbacks,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
        )


def _prefix_salt(config: EngineConfig) -> bytes | None:
    """Every setting but the hot ones: what a page holds depends on no other."""
    if not config.enable_prefix_caching:
        return None
    return repr([(knob.name, getattr(config, knob.name)) for knob in knobs() if knob.cost != "hot"]).encode()


def _until_finish(sequence: Sequence, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], FinishReason | None]:
    """The tokens up to and including a stop token or the last allowed one."""
    params = sequence.params
    left = params.max_tokens - len(sequence.output)
    if len(tokens) == 1 < left and tokens[0] not in params.stop_token_ids:
        return tokens, None  # nearly always
    if not params.ignore_eos:
        for index, token in enumerate(tokens[:left]):
            if token in params.stop_token_ids:
                return tokens[: index + 1], "stop"
    return tokens[:left], "length" if len(tokens) >= left else None
