"""Traffic without what was said: keyed block hashes instead of prompts, keyed pseudonyms instead of names.

Kept: arrivals, lengths, shared prefixes, SLO classes, who is the same tenant and session, sampling temperatures.
Dropped: prompts, answers, request ids, seeds, provenance. Plain hashes of short blocks could be guessed block by block;
without the key these cannot, and exports under different keys cannot be linked.
"""

from __future__ import annotations

import hmac
import math
import os
from dataclasses import dataclass
from pathlib import Path

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from tuner.traffic.blocks import BLOCK_TOKENS, CHARS_PER_TOKEN, chained_hashes, prompt_text, token_blocks
from tuner.traffic.synthesis import MADE_OF_LENGTHS
from tuner.traffic.trace_lines import HeaderLine, RequestLine, TraceLines

KEY_VARIABLE = "SERVETUNE_TRACE_KEY"
MIN_KEY_BYTES = 16
MIN_BLOCK_TOKENS = 16
NAME_BYTES = 6


@dataclass(frozen=True, slots=True)
class Anonymizer:
    """key: secret bytes. block_tokens: prompt tokens under one hash. chars_per_token: of prompts that are text."""

    key: bytes
    block_tokens: float = BLOCK_TOKENS
    chars_per_token: float = CHARS_PER_TOKEN

    def line(self, line: RequestLine, id: str) -> RequestLine:
        """The same request under `id`, told by lengths and hashes alone."""
        tokens, hashes = self._prompt(line)
        return RequestLine(
            id=id,
            arrival=line.arrival,
            max_tokens=line.max_tokens,
            tenant=self._name("tenant", line.tenant),
            slo_class=line.slo_class,
            prompt_tokens=tokens,
            hash_ids=hashes or UNSET,
            output_tokens=line.output_tokens,
            output_tokens_estimated=line.output_tokens_estimated,
            temperature=line.temperature,
            top_p=line.top_p,
            top_k=line.top_k,
            session=UNSET if isinstance(line.session, UnsetType) else self._name("session", line.session),
            think_time=line.think_time,
        )

    def _name(self, kind: str, name: str) -> str:
        digest = hmac.digest(self.key, f"{kind}\0{name}".encode(), "sha256")
        return f"{kind[0]}-{digest[:NAME_BYTES].hex()}"

    def _prompt(self, line: RequestLine) -> tuple[int, list[int]]:
        """Tokens of the prompt and the hashes of its blocks."""
        if not isinstance(line.prompt_token_ids, UnsetType):
            ids = line.prompt_token_ids
            return len(ids), chained_hashes(b"tokens", token_blocks(ids, max(1, round(self.block_tokens))), self.key)
        known = None if isinstance(line.prompt_tokens, UnsetType) else line.prompt_tokens
        if (text := prompt_text(line)) is not None:
            tokens = known or max(1, round(len(text) / self.chars_per_token))
            return tokens, chained_hashes(b"text", self._text_blocks(text, tokens), self.key)
        assert known is not None
        recorded = [] if isinstance(line.hash_ids, UnsetType) else line.hash_ids
        return known, chained_hashes(b"hash", [one.to_bytes(8) for one in recorded], self.key)

    def _text_blocks(self, text: str, tokens: int) -> list[bytes]:
        """As many blocks as `tokens` fill. Where the text is longer than their characters the last one holds the rest,
        so that prompts which differ anywhere differ in a hash; where it is shorter the last ones are empty."""
        size = max(1, round(self.block_tokens * self.chars_per_token))
        last = math.ceil(tokens / self.block_tokens) - 1
        return [*(text[i * size : (i + 1) * size].encode() for i in range(last)), text[last * size :].encode()]


def anonymized(trace: TraceLines, key: bytes, block_tokens: float = BLOCK_TOKENS) -> TraceLines:
    """The trace without text. block_tokens: of the hashes; a trace that has hash_ids keeps its own.

    Characters per token are those of the trace where it tells both, else 4.
    """
    if block_tokens < MIN_BLOCK_TOKENS:
        raise ValueError(f"block_tokens: expected at least {MIN_BLOCK_TOKENS}, given {block_tokens}")
    if any(not isinstance(line.hash_ids, UnsetType) for line in trace.lines):
        block_tokens = trace.header.hash_block_tokens
    anonymizer = Anonymizer(key, block_tokens, measured_chars_per_token(trace))
    header = anonymous_header(anonymizer, "tune trace anonymize")
    lines = [anonymizer.line(line, f"a{number:06d}") for number, line in enumerate(trace.lines, start=1)]
    if trace.header.provenance.get("prompts") == MADE_OF_LENGTHS:  # their hashes would claim that nothing is shared
        lines = [replace(line, hash_ids=UNSET) for line in lines]
    return TraceLines(replace(header, seconds=trace.header.seconds), lines)


def anonymous_header(anonymizer: Anonymizer, source: str) -> HeaderLine:
    """The header of an anonymous trace: what was done, and nothing of where it came from."""
    how = {"hashes": "HMAC-SHA256, chained", "chars_per_token": round(anonymizer.chars_per_token, 3)}
    return HeaderLine(1, {"source": source, "anonymized": how}, hash_block_tokens=anonymizer.block_tokens)


def measured_chars_per_token(trace: TraceLines) -> float:
    """Characters over tokens of the prompts that are text and tell their tokens; 4 where none does."""
    chars = tokens = 0
    for line in trace.lines:
        text = prompt_text(line)
        if text is not None and not isinstance(line.prompt_tokens, UnsetType):
            chars, tokens = chars + len(text), tokens + line.prompt_tokens
    return chars / tokens if tokens else CHARS_PER_TOKEN


def read_key(path: Path | None) -> bytes:
    """The key in a file, or in $SERVETUNE_TRACE_KEY; newlines at its end are not part of it. Raises ValueError."""
    if path is not None:
        try:
            key, where = path.read_bytes(), str(path)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    else:
        key, where = os.environb.get(KEY_VARIABLE.encode(), b""), f"${KEY_VARIABLE}"
    key = key.rstrip(b"\r\n")
    if not key:
        raise ValueError(f"{where}: no key; expected a secret, as from: head -c 32 /dev/urandom | base64 > FILE")
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(f"{where}: expected a key of at least {MIN_KEY_BYTES} bytes, given {len(key)}")
    return key
