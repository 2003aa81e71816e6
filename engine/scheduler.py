"""Who runs in this step: one token budget, decodes first, then prefill chunks and newcomers in the policy's order."""

from __future__ import annotations

import math
from itertools import takewhile

import msgspec

from engine.config import EngineConfig
from engine.kv_cache import BlockManager
from engine.scheduling_policy import make_policy
from engine.sequence import Sequence, SequenceStatus
from engine.step_times import StepLoad, StepTimes

FORCED_ROWS = 8
"""Forced tokens verified per step (/score). Reads go through the stored cache whatever this number is."""

USUAL_DRAFT_LAG = 2
"""Tokens of a decoding sequence that the draft cache lacks: the newest, and the last guess where all were accepted."""


class ScheduledSequence(msgspec.Struct, gc=False):
    """One sequence of a step. Rows computed: positions [start, start + num_tokens), then num_drafts guessed ones.

    samples: whether the last of the num_tokens rows yields a token (False inside a prompt).
    """

    sequence: Sequence
    start: int
    num_tokens: int
    num_drafts: int
    samples: bool

    @property
    def rows(self) -> int:
        return self.num_tokens + self.num_drafts

    @property
    def draft_lag(self) -> int:
        """Tokens up to the guesses that the draft model's cache lacks."""
        return self.start + self.num_tokens - self.sequence.num_draft_computed


def step_load(step: list[ScheduledSequence]) -> StepLoad:
    """What a step computes, as the step-time table counts it."""
    load = StepLoad()
    for item in step:
        # The last token of a prompt may be a chunk of one; it is no decode.
        if item.num_tokens == 1 and item.start >= len(item.sequence.prompt):
            load.rows += item.rows
            load.context += item.start + item.rows
        else:
            load.add_chunk(item.start, item.num_tokens)
    return load


class Scheduler:
    """Holds the waiting and the running sequences; `schedule` builds the next step.

    prefills: running, the next step does not reach their last token or did not yet. decodes: running, one token is
    not in the cache. newcomers: those that the last `schedule` admitted for the first time. depth: tokens to guess for
    each decode.
    """

    def __init__(self, config: EngineConfig, blocks: BlockManager, max_model_len: int) -> None:
        self.config = config
        self.blocks = blocks
        self.max_model_len = max_model_len
        self.depth = config.num_speculative_tokens
        self.policy = make_policy(config)
        self.prefills: list[Sequence] = []
        self.decodes: list[Sequence] = []
        self.newcomers: list[Sequence] = []
        self.preemptions = 0
        self.step_times = StepTimes()
        self._load: StepLoad | None = None
        self._step: list[ScheduledSequence] = []
        self._budget = 0

    @property
    def num_waiting(self) -> int:
        return len(self.policy)

    @property
    def num_running(self) -> int:
        return len(self.prefills) + len(self.decodes)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises ValueError when it could never run with this configuration."""
        length = len(sequence.prompt) + sequence.params.max_tokens
        if not sequence.prompt:
            raise ValueError("prompt: expected at least one token")
        if length > self.max_model_len:
            raise ValueError(
                f"prompt + max_tokens: {len(sequence.prompt)} + {sequence.params.max_tokens} tokens exceed "
                f"max_model_len {self.max_model_len}"
            )
        if (peak := self.blocks.peak_blocks(length, self._step_tokens())) > self.blocks.num_blocks:
            raise ValueError(
                f"prompt + max_tokens: needs {peak} pages of {self.blocks.block_size} tokens, "
                f"the KV cache has {self.blocks.num_blocks}; raise kv_cache_memory_bytes"
            )
        self.policy.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is and free its pages."""
        if sequence.status is SequenceStatus.WAITING:
            self.policy.remove(sequence)
        elif sequence.status is SequenceStatus.RUNNING:
            self._stop_running(sequence)
        sequence.status = SequenceStatus.FINISHED

    def schedule(self) -> list[ScheduledSequence]:
        """The next step. Empty only when nothing waits and nothing runs."""
        self.newcomers = []
        while True:
            self._step = []
            self._budget = self.config.max_num_batched_tokens
            self._schedule_decodes()
            # Chunks are cut to the target only where streams wait for the step's end.
            self._load = step_load(self._step) if self.config.itl_target is not None and self._step else None
            self._schedule_prefills()
            if self._step or not self.num_running:
                return self._step
            self._preempt()

    def _step_tokens(self) -> int:
        chunk = self.config.prefill_chunk_size or self.config.max_num_batched_tokens
        decode_rows = max(self.config.num_speculative_tokens + 1, FORCED_ROWS)
        return max(min(chunk, self.config.max_num_batched_tokens), decode_rows)

    def _schedule_decodes(self) -> None:
        """One row each, and rows to guess with. Most steps only add a row within the last page: that is kept short."""
        left = len(self.decodes)
        size, depth, running = self.blocks.block_size, self.depth, SequenceStatus.RUNNING
        for sequence in tuple(self.decodes):
            if sequence.status is running:  # not preempted for one before it
                start = sequence.num_computed
                if depth or start >= len(sequence.block_table) * size or sequence.params.forced is not None:
                    # Every decode gets its one row before anybody gets rows to guess with.
                    self._schedule_decode(sequence, max(min(self._num_drafts(sequence), self._budget - left), 0))
                else:
                    self._step.append(ScheduledSequence(sequence, start, 1, 0, True))
                    self._budget -= 1
            left -= 1

    def _schedule_decode(self, sequence: Sequence, drafts: int) -> None:
        while not self.blocks.fits(sequence, sequence.num_tokens + drafts):
            if drafts:
                drafts = 0
            elif self._preempt() is sequence:
                return
        self._take(sequence, 1, drafts)

    def _num_drafts(self, sequence: Sequence) -> int:
        """Rows to verify beside the next token: forced ones, or guesses."""
        if sequence.params.forced is not None:
            # Heavy hitters leave after each step: a score must read them as a generated token would, one row a step.
            return 0 if self.config.kv_heavy_tokens else min(FORCED_ROWS, sequence.num_forced_left) - 1
        left = sequence.params.max_tokens - len(sequence.output)
        return min(self.depth, left - 1)

    def _schedule_prefills(self) -> None:
        """Chunks in the policy's order; a newcomer that ranks before a running prefill goes before it."""
        rank = self.policy.rank
        running = sorted(self.prefills, key=rank)
        while self._budget > 0:
            newcomer = self._next_newcomer()
            if newcomer is not None and (not running or rank(newcomer) < rank(running[0])):
                self._admit(newcomer)
                self._take_chunk(newcomer)
            elif running:
                self._take_chunk(running.pop(0))
            else:
                return

    def _take_chunk(self, sequence: Sequence) -> None:
        pending = sequence.num_tokens - sequence.num_computed
        held = len(sequence.block_table) + self.blocks.num_free
        room = held * self.blocks.block_size - sequence.num_computed
        chunk = min(pending, self._budget, self.config.prefill_chunk_size or self._budget, room)
        if chunk <= 0:
            return
        if self._load is not None and (chunk := self._cut(self._load, sequence.num_computed, chunk)) == 0:
            return
        self._take(sequence, chunk, 0)
        if chunk == pending:
            self.prefills.remove(sequence)
            self.decodes.append(sequence)

    def _cut(self, load: StepLoad, start: int, chunk: int) -> int:
        """What of the chunk ends within itl_target; nothing ends the step."""
        assert self.config.itl_target is not None
        chunk = self.step_times.chunk(load, start, chunk, self.config.itl_target)
        load.add_chunk(start, chunk)
        if chunk == 0:
            self._budget = 0
        return chunk

    def _next_newcomer(self) -> Sequence | None:
        """The waiting sequence to admit now, if there is a seat for it and room for its whole prompt.

        Those behind a sequence that does not fit may pass it max_skip_ahead times, so it cannot starve.
        """
        if not len(self.policy) or self.num_running >= self.config.max_num_seqs:
            return None
        room = self.blocks.num_free - self._reserved()
        if self.num_running:  # with nothing to grow, a request of the whole pool must get in
            room -= math.ceil(self.config.watermark * self.blocks.num_blocks)
        for sequence in self.policy.first(1 + self.config.max_skip_ahead):
            if self._peak(sequence) - self.blocks.num_shared(sequence) <= room:
                return sequence
            if sequence.num_overtaken >= self.config.max_skip_ahead:
                return None
        return None

    def _admit(self, sequence: Sequence) -> None:
        for passed in takewhile(lambda other: other is not sequence, self.policy.first(1 + self.config.max_skip_ahead)):
            passed.num_overtaken += 1
        self.policy.remove(sequence)
        sequence.status = SequenceStatus.RUNNING
        self.prefills.append(sequence)
        self.blocks.adopt(sequence)
        if not sequence.was_admitted:
            sequence.was_admitted = True
            self.newcomers.append(sequence)
            self.policy.admitted(sequence, sequence.num_tokens - sequence.num_computed)

    def _peak(self, sequence: Sequence) -> int:
        """Pages until `sequence` has its first new token."""
        return self.blocks.peak_blocks(sequence.num_tokens + 1, self._step_tokens())

    def _reserved(self) -> int:
        """Pages promised to the running: the rest of each prompt, and one page of growth for each decode."""
        total = len(self.decodes)
        for sequence in self.prefills:
            held = sum(page is not None for page in sequence.block_table)
            total += max(self._peak(sequence) - held, 0)
        return total

    def _take(self, sequence: Sequence, num_tokens: int, num_drafts: int) -> None:
        start = sequence.num_computed
        self.blocks.extend(sequence, start + num_tokens + num_drafts)
        samples = start + num_tokens == sequence.num_tokens
        self._step.append(ScheduledSequence(sequence, start, num_tokens, num_drafts, samples))
        self._budget -= num_tokens + num_drafts

    def _preempt(self) -> Sequence:
        """Send the running sequence of highest rank back to the queue; its cache is recomputed when it returns."""
        victim = max((*self.prefills, *self.decodes), key=self.policy.rank)
        self._stop_running(victim)
        self._budget += sum(item.rows for item in self._step if item.sequence is victim)
        self._step = [item for item in self._step if item.sequence is not victim]
        victim.status = SequenceStatus.WAITING
        victim.num_computed = 0
        victim.num_draft_computed = 0
        self.policy.add(victim)
        self.preemptions += 1
        return victim

    def _stop_running(self, sequence: Sequence) -> None:
        (self.decodes if sequence in self.decodes else self.prefills).remove(sequence)
        self.blocks.free(sequence)
