"""BlockManager: which page of the cache holds which block of which sequence. Bookkeeping only, no tensors.

Visibility rule of the cache (kv_window = W, kv_sink_tokens = S): the query at position p sees the keys at positions
k <= p with k < S or k > p - W. The rule is exact per token; a page is freed when no later query can see any of it,
so results do not depend on page or chunk boundaries. A model with a sliding window W of its own has that rule without
sinks; of two windows the smaller one rules.

With kv_heavy_tokens the query sees all that is held: the sinks, the pages that the window touches, and of the older
pages those with the largest attention mass so far (H2O, Zhang et al. 2023), by whole pages after each step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from engine.block_pool import BlockPool, block_hash
from engine.sequence import Sequence


class BlockManager:
    """Pages of `block_size` tokens shared by all sequences.

    num_blocks: pages in the pool. window: kv_window in tokens or None. sink_tokens: kv_sink_tokens.
    salt: all that the contents of a page depend on besides its tokens; None: no prefix caching. heavy_tokens:
    kv_heavy_tokens.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        window: int | None = None,
        sink_tokens: int = 0,
        salt: bytes | None = None,
        heavy_tokens: int = 0,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.window = window
        self.sink_tokens = sink_tokens
        self.salt = salt
        self.heavy_blocks = heavy_tokens // block_size
        self._sink_blocks = self.blocks_to_hold(sink_tokens)
        self.evicted_blocks = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self._pool = BlockPool(num_blocks)

    @property
    def num_free(self) -> int:
        """Pages that nobody refers to, those that still hold a published block included."""
        return self._pool.num_free

    def blocks_to_hold(self, num_tokens: int) -> int:
        """Pages of a table that covers positions [0, num_tokens), evicted ones counted."""
        return -(-num_tokens // self.block_size)

    def peak_blocks(self, num_tokens: int, step_tokens: int) -> int:
        """Most pages a sequence of `num_tokens` holds at once when a step computes up to `step_tokens` of them."""
        whole = self.blocks_to_hold(num_tokens)
        if self.window is None:
            return whole
        # From the first key that the step's first query sees to its last token, in the worst alignment.
        kept = self.blocks_to_hold(self.sink_tokens) + self.blocks_to_hold(self.window + step_tokens - 2) + 1
        return min(whole, kept + self.heavy_blocks)

    def missing_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        """Pages that must be taken so that `sequence` covers positions [0, num_tokens)."""
        return max(self.blocks_to_hold(num_tokens) - len(sequence.block_table), 0)

    def fits(self, sequence: Sequence, num_tokens: int) -> bool:
        return self.missing_blocks(sequence, num_tokens) <= self.num_free

    def extend(self, sequence: Sequence, num_tokens: int) -> None:
        """Take pages until the table covers positions [0, num_tokens); `fits` must hold."""
        missing = self.missing_blocks(sequence, num_tokens)
        assert missing <= self.num_free, "extend called without room"
        sequence.block_table.extend(self._pool.take() for _ in range(missing))

    def num_shared(self, sequence: Sequence) -> int:
        """Pages that `adopt` would share with running sequences, without taking any from the free ones.

        0 with a window: the sequence leaves them again, and takes others in their place.
        """
        return 0 if self.window is not None else sum(not self._pool.is_free(page) for page in self._match(sequence))

    def adopt(self, sequence: Sequence) -> None:
        """Begin `sequence`, which holds nothing, with the pages of the longest published beginning of its tokens."""
        pages = self._match(sequence)
        for page in pages:
            self._pool.share(page)
        sequence.block_table.extend(pages)
        sequence.num_published = len(pages)
        sequence.num_computed = sequence.num_draft_computed = len(pages) * self.block_size
        if self.salt is not None:
            self.prefix_cache_queries += sequence.num_tokens
            self.prefix_cache_hits += sequence.num_computed
        self.evict(sequence, sequence.num_computed)

    def _match(self, sequence: Sequence) -> list[int]:
        """Pages of its published full blocks from the first one on; the last token always has to be computed."""
        pages: list[int] = []
        if self.salt is not None:
            for index in range((sequence.num_tokens - 1) // self.block_size):
                if (page := self._pool.find(self._hash(sequence, index))) is None:
                    break
                pages.append(page)
        return pages

    def publish(self, sequence: Sequence, num_tokens: int) -> None:
        """Let others find the full blocks among the first `num_tokens`. Nothing after the first eviction."""
        end = num_tokens // self.block_size
        if self.salt is None or sequence.num_published >= end or None in sequence.block_table:
            return
        for index in range(sequence.num_published, end):
            page = sequence.block_table[index]
            assert page is not None
            self._pool.publish(page, self._hash(sequence, index))
            sequence.num_published = index + 1

    def _hash(self, sequence: Sequence, index: int) -> bytes:
        """Name of its block `index`; the blocks before it are named on the way."""
        hashes = sequence.block_hashes
        while len(hashes) <= index:
            assert self.salt is not None
            start = len(hashes) * self.block_size
            tokens = sequence.tokens(start, start + self.block_size)
            hashes.append(block_hash(hashes[-1] if hashes else self.salt, tokens))
        return hashes[index]

    def weigh(self, sequence: Sequence, masses: Iterable[float]) -> None:
        """Add the attention that a step paid to each page that `sequence` holds, in the order of the table."""
        held = (index for index, page in enumerate(sequence.block_table) if page is not None)
        for index, mass in zip(held, masses, strict=False):
            sequence.page_masses[index] = sequence.page_masses.get(index, 0.0) + mass

    def evict(self, sequence: Sequence, next_position: int) -> int:
        """Free the pages that no query at `next_position` or later is to see. Returns their number."""
        if self.window is None:
            return 0
        table = sequence.block_table
        first = self._sink_blocks
        end = min((next_position - self.window + 1) // self.block_size, len(table))
        if end <= first or (table[end - 1] is None and not self.heavy_blocks):
            return 0
        if self.heavy_blocks:
            old = [index for index in range(first, end) if table[index] is not None]
            old.sort(key=lambda index: (sequence.page_masses.get(index, 0.0), index), reverse=True)
            leaving = old[self.heavy_blocks :]
        else:
            # Only the end of the range can hold pages: the rest went before.
            leaving = list(itertools.takewhile(lambda index: table[index] is not None, range(end - 1, first - 1, -1)))
        for index in leaving:
            page = table[index]
            assert page is not None
            self._pool.release(page)
            table[index] = None
            sequence.page_masses.pop(index, None)
        self.evicted_blocks += len(leaving)
        return len(leaving)

    def free(self, sequence: Sequence) -> None:
        """Give back every page of `sequence`, the last ones first: they are the first to be taken again."""
        for page in reversed(sequence.block_table):
            if page is not None:
                self._pool.release(page)
        sequence.block_table.clear()
        sequence.page_masses.clear()
        sequence.num_published = 0


def narrower(window: int | None, sink_tokens: int, own: int | None) -> tuple[int | None, int]:
    """Window and sinks that rule when the model's own window is `own`.

    The sinks belong to kv_window: where the model's window is the smaller one, they may not widen it.
    """
    if own is not None and (window is None or own <= window):
        return own, 0
    return window, sink_tokens
