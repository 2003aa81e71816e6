"""LLMEngine: add, step, abort, reconfigure. It schedules; the runner that it is given computes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import Protocol

import msgspec

from engine.config import EngineConfig, knobs
from engine.kv_cache import BlockManager, narrower
from engine.scheduler import ScheduledSequence, Scheduler, step_load
from engine.sequence import EngineStats, FinishReason, SamplingParams, Sequence, SequenceOutput
from engine.speculative.meter import SpeculationMeter

log = logging.getLogger("servetune.engine")


class RowResult(msgspec.Struct, frozen=True, gc=False):
    """What the runner found for one scheduled sequence.

    tokens: accepted drafts and then one more token; empty when the row does not sample. logprobs, top_logprobs,
    listed_ids, listed_logprobs: see SequenceOutput. num_drafted: proposals that were verified. num_draft_computed:
    positions now in the draft model's cache. page_masses: see BlockManager.weigh; empty without kv_heavy_tokens.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    num_drafted: int = 0
    num_draft_computed: int = 0
    listed_ids: bytes = b""
    listed_logprobs: bytes = b""
    page_masses: tuple[float, ...] = ()


class Runner(Protocol):
    """Turns a step into tokens. max_model_len: tokens; num_blocks: pages the pool holds under the present config.

    model_window: tokens that the model's own attention sees, or None.
    """

    max_model_len: int
    model_window: int | None
    num_blocks: int

    def execute(self, step: list[ScheduledSequence]) -> list[RowResult]: ...

    def reconfigure(self, config: EngineConfig) -> None: ...


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
        return bool(self._sequences)

    def step(self) -> list[SequenceOutput]:
        """One forward pass over the scheduled batch; the new tokens of each request that got some."""
        began = self._clock()
        self._scheduler.depth = self._speculation.choose_depth(len(self._scheduler.decodes))
        step = self._scheduler.schedule()
        self.begun = [sequence.request_id for sequence in self._scheduler.newcomers]
        if not step:
            return []
        self._steps += 1
        started = self._clock()
        results = self._runner.execute(step)
        seconds = self._clock() - started
        if self.config.num_speculative_tokens:
            guessed, accepted = [r.num_drafted for r in results], [len(r.tokens) - 1 for r in results]
            self._speculation.observe(step, guessed, accepted, seconds)
        assert len(results) == len(step), "one result for each scheduled sequence"
        outputs = [output for output in map(self._advance, step, results) if output is not None]
        if self.config.itl_target is not None:
            self._scheduler.step_times.record(step_load(step), self._clock() - began)
        return outputs

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
