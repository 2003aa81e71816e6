"""BlockManager: which page of the cache holds which block of which sequence. Bookkeeping only, no tensors.

Visibility rule of the cache (kv_window = W, kv_sink_tokens = S): the query at position p sees the keys at positions
k <= p with k < S or k > p - W. The rule is exact per token; a page is freed when no later query can see any of it,
so results do not depend on page or chunk boundaries. A model with a sliding window W of its own has that rule without
sinks; of two windows the smaller one rules.
"""

from __future__ import annotations

from engine.sequence import Sequence


class BlockManager:
    """Pages of `block_size` tokens shared by all sequences.

    num_blocks: pages in the pool. window: kv_window in tokens or None. sink_tokens: kv_sink_tokens.
    """

    def __init__(self, num_blocks: int, block_size: int, window: int | None = None, sink_tokens: int = 0) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.window = window
        self.sink_tokens = sink_tokens
        self.evicted_blocks = 0
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_to_hold(self, num_tokens: int) -> int:
        """Pages of a table that covers positions [0, num_tokens), evicted ones counted."""
        return -(-num_tokens // self.block_size)

    def peak_blocks(self, num_tokens: int, step_tokens: int) -> int:
        """Most pages a sequence of `num_tokens` holds at once when a step computes up to `step_tokens` of them."""
        whole = self.blocks_to_hold(num_tokens)
        if self.window is None:
            return whole
        # The window may straddle one page more than it fills.
        kept = self.blocks_to_hold(self.sink_tokens) + self.blocks_to_hold(self.window + step_tokens) + 1
        return min(whole, kept)

    def missing_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        """Pages that must be taken so that `sequence` covers positions [0, num_tokens)."""
        return max(self.blocks_to_hold(num_tokens) - len(sequence.block_table), 0)

    def fits(self, sequence: Sequence, num_tokens: int) -> bool:
        return self.missing_blocks(sequence, num_tokens) <= self.num_free

    def extend(self, sequence: Sequence, num_tokens: int) -> None:
        """Take pages until the table covers positions [0, num_tokens); `fits` must hold."""
        missing = self.missing_blocks(sequence, num_tokens)
        assert missing <= self.num_free, "extend called without room"
        for _ in range(missing):
            sequence.block_table.append(self._free.pop())

    def evict(self, sequence: Sequence, next_position: int) -> int:
        """Free the pages that no query at `next_position` or later can see. Returns their number."""
        if self.window is None:
            return 0
        first = self.blocks_to_hold(self.sink_tokens)
        end = max(next_position - self.window + 1, 0) // self.block_size
        freed = 0
        for index in range(min(end, len(sequence.block_table)) - 1, first - 1, -1):
            page = sequence.block_table[index]
            if page is None:
                break
            self._free.append(page)
            sequence.block_table[index] = None
            freed += 1
        self.evicted_blocks += freed
        return freed

    def free(self, sequence: Sequence) -> None:
        """Give back every page of `sequence`."""
        self._free.extend(page for page in reversed(sequence.block_table) if page is not None)
        sequence.block_table.clear()


def narrower(window: int | None, sink_tokens: int, own: int | None) -> tuple[int | None, int]:
    """Window and sinks that rule when the model's own window is `own`.

    The sinks belong to kv_window: where the model's window is the smaller one, they may not widen it.
    """
    if own is not None and (window is None or own <= window):
        return own, 0
    return window, sink_tokens
