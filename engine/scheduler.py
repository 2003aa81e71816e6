"""Who runs in this step: one token budget, decodes first, then prefill chunks, then newcomers.

Policy: first come, first served. When the pool runs dry the latest arrival is preempted and recomputed later.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from engine.config import EngineConfig
from engine.kv_cache import BlockManager
from engine.sequence import Sequence, SequenceStatus

FORCED_ROWS = 8
"""Forced tokens verified per step (/score). Reads go through the stored cache whatever this number is."""


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
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


class Scheduler:
    """Holds the waiting and the running sequences; `schedule` builds the next step."""

    def __init__(self, config: EngineConfig, blocks: BlockManager, max_model_len: int) -> None:
        self.config = config
        self.blocks = blocks
        self.max_model_len = max_model_len
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

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
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is and free its pages."""
        if sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        elif sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
            self.blocks.free(sequence)
        sequence.status = SequenceStatus.FINISHED

    def schedule(self) -> list[ScheduledSequence]:
        """The next step. Empty only when nothing waits and nothing runs."""
        while True:
            step: list[ScheduledSequence] = []
            budget = self._schedule_decodes(step, self.config.max_num_batched_tokens)
            budget = self._schedule_prefills(step, budget)
            self._admit(step, budget)
            if step or not self.running:
                return step
            self._preempt()

    def _step_tokens(self) -> int:
        chunk = self.config.prefill_chunk_size or self.config.max_num_batched_tokens
        decode_rows = max(self.config.num_speculative_tokens + 1, FORCED_ROWS)
        return max(min(chunk, self.config.max_num_batched_tokens), decode_rows)

    def _schedule_decodes(self, step: list[ScheduledSequence], budget: int) -> int:
        decodes = [sequence for sequence in self.running if _pending(sequence) == 1]
        for index, sequence in enumerate(decodes):
            if sequence.status is not SequenceStatus.RUNNING:
                continue
            # Every decode gets its one row before anybody gets rows to guess with.
            spare = budget - (len(decodes) - index)
            drafts = max(min(self._num_drafts(sequence), spare), 0)
            while not self.blocks.fits(sequence, sequence.num_tokens + drafts):
                if drafts:
                    drafts = 0
                elif self._preempt() is sequence:
                    break
            if sequence.status is SequenceStatus.RUNNING:
                budget -= self._take(step, sequence, 1, drafts)
        return budget

    def _num_drafts(self, sequence: Sequence) -> int:
        """Rows to verify beside the next token: forced ones, or proposals of the draft model."""
        if sequence.params.forced is not None:
            return min(FORCED_ROWS, sequence.num_forced_left) - 1
        if not sequence.output:
            return 0
        left = sequence.params.max_tokens - len(sequence.output)
        return min(self.config.num_speculative_tokens, left - 1)

    def _schedule_prefills(self, step: list[ScheduledSequence], budget: int) -> int:
        for sequence in self.running:
            if _pending(sequence) > 1 and budget > 0:
                budget -= self._take_chunk(step, sequence, budget)
        return budget

    def _take_chunk(self, step: list[ScheduledSequence], sequence: Sequence, budget: int) -> int:
        chunk = min(_pending(sequence), budget, self.config.prefill_chunk_size or budget)
        held = len(sequence.block_table) + self.blocks.num_free
        chunk = min(chunk, held * self.blocks.block_size - sequence.num_computed)
        return self._take(step, sequence, chunk, 0) if chunk > 0 else 0

    def _admit(self, step: list[ScheduledSequence], budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            sequence = self.waiting[0]
            if self._reserved() + self._peak(sequence) > self.blocks.num_free:
                return
            self.waiting.popleft()
            sequence.status = SequenceStatus.RUNNING
            self.running.append(sequence)
            budget -= self._take_chunk(step, sequence, budget)

    def _peak(self, sequence: Sequence) -> int:
        """Pages until `sequence` has its first new token."""
        return self.blocks.peak_blocks(sequence.num_tokens + 1, self._step_tokens())

    def _reserved(self) -> int:
        """Pages promised to the running: the rest of each prompt, and one page of growth for each decode."""
        total = 0
        for sequence in self.running:
            if _pending(sequence) > 1:
                held = sum(page is not None for page in sequence.block_table)
                total += max(self._peak(sequence) - held, 0)
            else:
                total += 1
        return total

    def _take(self, step: list[ScheduledSequence], sequence: Sequence, num_tokens: int, num_drafts: int) -> int:
        start = sequence.num_computed
        self.blocks.extend(sequence, start + num_tokens + num_drafts)
        samples = start + num_tokens == sequence.num_tokens
        step.append(ScheduledSequence(sequence, start, num_tokens, num_drafts, samples))
        return num_tokens + num_drafts

    def _preempt(self) -> Sequence:
        """Send the latest arrival back to the head of the queue; its cache is recomputed when it returns."""
        victim = self.running.pop()
        self.blocks.free(victim)
        victim.status = SequenceStatus.WAITING
        victim.num_computed = 0
        victim.num_draft_computed = 0
        self.waiting.appendleft(victim)
        self.preemptions += 1
        return victim


def _pending(sequence: Sequence) -> int:
    """Tokens not yet in the cache; 1 for a sequence that is decoding."""
    return sequence.num_tokens - sequence.num_computed
