"""BlockPool: the pages of the cache, who refers to them, and which published block each still holds.

A free page keeps its published block until it is taken, so the free list is also the prefix cache's LRU, as in vLLM.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b


def block_hash(parent: bytes, tokens: list[int]) -> bytes:
    """Name of a full block: its token ids and the hash of the block before it (for the first block, the salt)."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """num_blocks pages. A page is free exactly when nothing refers to it."""

    def __init__(self, num_blocks: int) -> None:
        self._references = [0] * num_blocks
        self._free = OrderedDict.fromkeys(range(num_blocks))
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free page for new content: one without a block if there is any, else the least recently used."""
        page, _ = self._free.popitem(last=False)
        self._references[page] = 1
        if (name := self._hash_of.pop(page, None)) is not None:
            del self._page_of[name]
        return page

    def share(self, page: int) -> None:
        """One more reference to a page that holds a published block."""
        assert page in self._hash_of, "only published pages are shared"
        self._free.pop(page, None)
        self._references[page] += 1

    def release(self, page: int) -> None:
        assert self._references[page] > 0, "a page was given back twice"
        self._references[page] -= 1
        if self._references[page] == 0:
            self._free[page] = None
            self._free.move_to_end(page, last=page in self._hash_of)

    def publish(self, page: int, name: bytes) -> None:
        """Let `share` find the block of this name in `page`, unless another page holds the same block already."""
        if name not in self._page_of:
            self._page_of[name] = page
            self._hash_of[page] = name

    def find(self, name: bytes) -> int | None:
        return self._page_of.get(name)

    def is_free(self, page: int) -> bool:
        return page in self._free
