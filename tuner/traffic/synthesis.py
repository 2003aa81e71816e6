"""Token ids for requests whose trace tells lengths only: seeded, and equal where the prefix hashes are equal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

FIRST_TOKEN = 16
"""Ids below are left alone: tokenizers keep their special tokens there."""

DEFAULT_VOCAB_SIZE = 2048
DEFAULT_BLOCK_TOKENS = 512
"""Prompt tokens under one prefix hash, as in Mooncake (FAST'25)."""

MADE_OF_LENGTHS = "made of lengths alone"
"""provenance.prompts of a trace whose prompts hold no trace of what users' prompts shared."""

_BLOCK, _UNSHARED = 0, 1


class PromptSynthesizer:
    """Makes prompts of token ids in [FIRST_TOKEN, vocab_size).

    Block i of a prompt covers positions [round(i b), round((i + 1) b)), b = block_tokens, which may be a fraction when
    lengths were scaled. Its tokens are the first ones of a stream that depends on the seed and the hash id alone, so
    prompts share leading tokens exactly as far as they share leading hash ids (up to chance collisions of short
    blocks). What the hashes do not cover comes from a stream of the request's own.
    """

    def __init__(self, seed: int = 0, vocab_size: int = DEFAULT_VOCAB_SIZE, block_tokens: float = DEFAULT_BLOCK_TOKENS):
        if vocab_size <= FIRST_TOKEN:
            raise ValueError(f"vocab_size: expected more than {FIRST_TOKEN}, given {vocab_size}")
        self.seed, self.vocab_size, self.block_tokens = seed, vocab_size, block_tokens
        self._blocks: dict[int, list[int]] = {}
        self._ids = np.arange(vocab_size).astype(object)

    def prompt(self, tokens: int, index: int, hash_ids: Sequence[int] = ()) -> tuple[int, ...]:
        """A prompt of `tokens` ids. index: the request's number, which seeds whatever no hash covers."""
        ids: list[int] = []
        for position, hash_id in enumerate(hash_ids):
            length = min(tokens, round((position + 1) * self.block_tokens)) - len(ids)
            if length <= 0 and len(ids) >= tokens:
                break
            ids += self._block(hash_id)[:length]
        if len(ids) < tokens:
            ids += self._draw(_UNSHARED, index, tokens - len(ids))
        return tuple(ids)

    def _block(self, hash_id: int) -> list[int]:
        if hash_id not in self._blocks:
            self._blocks[hash_id] = self._draw(_BLOCK, hash_id, math.ceil(self.block_tokens) + 1)
        return self._blocks[hash_id]

    def _draw(self, stream: int, key: int, count: int) -> list[int]:
        rng = np.random.default_rng([self.seed, stream, key])
        # objects taken from one table, not made anew: a prompt of 100,000 tokens is 8 bytes a token instead of 36
        ids: list[int] = self._ids[rng.integers(FIRST_TOKEN, self.vocab_size, size=count)].tolist()
        return ids
