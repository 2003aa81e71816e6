"""A runner without a model that keeps what each cache slot holds, and checks what each query would read."""

from __future__ import annotations

from collections import Counter

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.runner import RowResult
from engine.scheduler import ScheduledSequence
from engine.sequence import UNKNOWN, Sequence

JUNK = -1


def next_token(prefix: list[int]) -> int:
    """A function of the text alone, of few values, so that different requests go on alike."""
    return (3 * sum(prefix[-4:]) + len(prefix)) % 5


class LatePending:
    """A step's results, which nobody saw before they were collected: once, and in the order of the launches."""

    def __init__(self, results: list[RowResult], uncollected: list[LatePending]) -> None:
        self._results, self._uncollected = results, uncollected
        uncollected.append(self)
        assert len(uncollected) <= 2, "a step in flight, and the one launched after it"

    def collect(self) -> list[RowResult]:
        assert self._uncollected.pop(0) is self
        return self._results


class PagedRunner:
    """Slots hold the hash of all tokens up to theirs, for the target and for the draft model.

    Tokens that the engine does not know yet are those that the step before sampled. asynchronous: what the runner says
    of itself.
    """

    def __init__(self, config: EngineConfig, num_blocks: int, max_model_len: int = 512) -> None:
        self.config, self.num_blocks, self.max_model_len = config, num_blocks, max_model_len
        self.model_window: int | None = None
        self.asynchronous = False
        self.steps = 0
        self.batches: list[list[tuple[str, int, int]]] = []
        self.uncollected: list[LatePending] = []
        self._sampled: dict[Sequence, int] = {}
        self._target: dict[int, int] = {}
        self._draft: dict[int, int] = {}

    def reconfigure(self, config: EngineConfig) -> None:
        self.config = config

    def launch(self, step: list[ScheduledSequence]) -> LatePending:
        self.steps += 1
        self.batches.append([(i.sequence.request_id, i.start, i.rows) for i in step])
        size = self.config.block_size
        writes = Counter(
            i.sequence.block_table[p // size] for i in step for p in {q // size * size for q in _positions(i)}
        )
        assert all(count == 1 for count in writes.values()), "two sequences write to one page"
        results = [self._compute(item) for item in step]  # all keys are stored before any is read
        for item in step:
            self._check_reads(item)
        self._sampled = {i.sequence: r.tokens[-1] for i, r in zip(step, results, strict=True) if r.tokens}
        return LatePending(results, self.uncollected)

    def _text(self, item: ScheduledSequence) -> list[int]:
        """Tokens up to the end of its rows that are no guesses."""
        tokens = item.sequence.tokens(0, item.start + item.num_tokens)
        assert UNKNOWN not in tokens[:-1]
        return [*tokens[:-1], self._sampled[item.sequence]] if tokens[-1] == UNKNOWN else tokens

    def _compute(self, item: ScheduledSequence) -> RowResult:
        sequence, end = item.sequence, item.start + item.num_tokens
        text = self._text(item)
        tokens: list[int] = []
        accepted = 0
        if item.samples:
            accepted = item.num_drafts if sequence.params.forced else sum(text) % (item.num_drafts + 1)
            for _ in range(accepted + 1):
                forced = sequence.params.forced
                tokens.append(forced[len(sequence.output) + len(tokens)] if forced else next_token(text + tokens))
        written = text + tokens[:accepted] + [JUNK] * (item.num_drafts - accepted)
        self._write(self._target, sequence, item.start, written)
        computed = sequence.num_draft_computed
        if self._drafts_for(item):
            # The last guess is never an input of the draft model.
            self._write(self._draft, sequence, sequence.num_draft_computed, written[: max(len(written) - 1, end)])
            computed = end + min(accepted, max(item.num_drafts - 1, 0))
        held = [index for index, page in enumerate(sequence.block_table) if page is not None]
        masses = tuple(float(index * 7 % 5) for index in held) if self.config.kv_heavy_tokens else ()
        return RowResult(tuple(tokens), num_drafted=item.num_drafts, num_draft_computed=computed, page_masses=masses)

    def _drafts_for(self, item: ScheduledSequence) -> bool:
        return item.num_drafts > 0 and item.sequence.params.forced is None

    def _write(self, cache: dict[int, int], sequence: Sequence, start: int, text: list[int]) -> None:
        for position, name in enumerate(names(text)):
            if position >= start and (slot := self._slot(sequence, position)) is not None:
                cache[slot] = name

    def _slot(self, sequence: Sequence, position: int) -> int | None:
        page = sequence.block_table[position // self.config.block_size]
        return None if page is None else page * self.config.block_size + position % self.config.block_size

    def _check_reads(self, item: ScheduledSequence) -> None:
        """Every key that the first query may see is there and is of this very text; so is what the draft may see."""
        window, sinks = self.config.kv_window or 10**9, self.config.kv_sink_tokens
        for k, name in enumerate(names(self._text(item))):
            slot = self._slot(item.sequence, k)
            if k < sinks or k > item.start - window:
                assert slot is not None, f"position {k} is visible and has no page"
            if slot is not None:
                assert self._target.get(slot) == name, f"position {k} holds something else"
            if self._drafts_for(item) and slot is not None:
                assert self._draft.get(slot) == name, f"position {k} holds something else for the draft model"


def names(text: list[int]) -> list[int]:
    found, last = [], 0
    for token in text:
        last = hash((last, token))
        found.append(last)
    return found


def _positions(item: ScheduledSequence) -> range:
    return range(item.start, item.start + item.rows)


def check_pages(engine: LLMEngine) -> None:
    """References equal what the tables say; a page is free exactly when there are none; names and pages are 1:1."""
    pool = engine._blocks._pool
    held = Counter(p for s in engine._sequences.values() for p in s.block_table if p is not None)
    assert pool._references == [held[page] for page in range(engine._blocks.num_blocks)]
    assert set(pool._free) == {page for page in range(engine._blocks.num_blocks) if not held[page]}
    assert {name: page for page, name in pool._hash_of.items()} == pool._page_of
