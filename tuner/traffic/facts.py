"""What describes a request without its prompt: times, lengths, who, and the hashes of the prompt's blocks."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import UnsetType

from tuner.traffic.blocks import BLOCK_TOKENS, CHARS_PER_TOKEN, chained_hashes, prompt_text, text_blocks, token_blocks
from tuner.traffic.trace_lines import RequestLine

BLOCK_CHARS = round(BLOCK_TOKENS * CHARS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is kept of one request. Prompt lengths that the trace does not tell are estimated from the characters.

    hashes: chained hashes of the prompt's leading blocks of block_tokens tokens; None where nothing is known of it.
    """

    id: str
    arrival: float
    tenant: str
    slo_class: str
    prompt_tokens: int
    prompt_estimated: bool
    output_tokens: int | None
    output_estimated: bool
    session: str | None
    think_time: float | None
    hashes: tuple[int, ...] | None
    block_tokens: float


def facts_of(line: RequestLine, hash_block_tokens: float, key: bytes) -> Facts:
    """Facts of one line. hash_block_tokens: of the file's header. key: of the hashes made of prompts that are there.

    Only full blocks count, as in an engine's cache; recorded hash_ids count as they are, the last one too.
    """
    known = None if isinstance(line.prompt_tokens, UnsetType) else line.prompt_tokens
    tokens, hashes, block_tokens = known or 0, None, float(BLOCK_TOKENS)
    if (text := prompt_text(line)) is not None:
        hashes = chained_hashes(b"text", text_blocks(text, BLOCK_CHARS)[: len(text) // BLOCK_CHARS], key)
        tokens = known or max(1, round(len(text) / CHARS_PER_TOKEN))
        block_tokens = tokens * BLOCK_CHARS / len(text)
    elif not isinstance(line.prompt_token_ids, UnsetType):
        tokens = len(line.prompt_token_ids)
        blocks = token_blocks(line.prompt_token_ids, BLOCK_TOKENS)
        hashes = chained_hashes(b"tokens", blocks[: tokens // BLOCK_TOKENS], key)
    elif not isinstance(line.hash_ids, UnsetType):
        hashes, block_tokens = line.hash_ids, float(hash_block_tokens)
    return Facts(
        id=line.id,
        arrival=line.arrival,
        tenant=line.tenant,
        slo_class=line.slo_class,
        prompt_tokens=tokens,
        prompt_estimated=text is not None and known is None,
        output_tokens=None if isinstance(line.output_tokens, UnsetType) else line.output_tokens,
        output_estimated=line.output_tokens_estimated,
        session=None if isinstance(line.session, UnsetType) else line.session,
        think_time=None if isinstance(line.think_time, UnsetType) else line.think_time,
        hashes=None if hashes is None else tuple(hashes),
        block_tokens=block_tokens,
    )
