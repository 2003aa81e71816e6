"""Prompts as chained block hashes: equal leading blocks, equal leading hashes, and nothing else without the key.

h_0 = HMAC(key, kind), h_i = HMAC(key, h_(i-1) || block_i) with HMAC-SHA256; an id is the first 63 bits of h_i. A
block's id thus stands for the whole prefix that it ends, as in Mooncake (FAST'25) and vLLM's prefix cache.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

import numpy as np
from msgspec import UnsetType

from tuner.traffic.trace_lines import RequestLine

BLOCK_TOKENS = 16
"""vLLM's block; the smallest that hides its content from whoever guesses."""
CHARS_PER_TOKEN = 4.0
"""English text under the usual tokenizers, where nothing better is known."""


def chained_hashes(kind: bytes, blocks: Iterable[bytes], key: bytes) -> list[int]:
    """One id in [0, 2^63) a block. kind: what the blocks are made of; chains of different kinds never meet."""
    previous, ids = hmac.digest(key, kind, "sha256"), []
    for block in blocks:
        previous = hmac.digest(key, previous + block, "sha256")
        ids.append(int.from_bytes(previous[:8]) >> 1)
    return ids


def token_blocks(ids: Sequence[int], size: int) -> list[bytes]:
    """Token ids in blocks of `size`, the last one perhaps shorter."""
    data = np.asarray(ids, dtype="<u4").tobytes()
    return [data[start : start + 4 * size] for start in range(0, len(data), 4 * size)]


def text_blocks(text: str, size: int) -> list[bytes]:
    """Text in blocks of `size` characters, the last one perhaps shorter."""
    return [text[start : start + size].encode() for start in range(0, len(text), size)]


def prompt_text(line: RequestLine) -> str | None:
    """Text of a prompt, or of all its messages in an order that a longer conversation continues; None for any other."""
    if not isinstance(line.prompt, UnsetType):
        return line.prompt
    if not isinstance(line.messages, UnsetType):
        return "".join(f"\x02{message.role}\x03{message.content}" for message in line.messages)
    return None
