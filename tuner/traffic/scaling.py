"""A trace faster or slower, longer or shorter, or with fewer users."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TypeVar

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from tuner.traffic.lengths import MAX_TOKENS
from tuner.traffic.split import Unit, drawn_units, part, unit_of
from tuner.traffic.trace_lines import Message, RequestLine, TraceLines

_PIECE = re.compile(r"\s*\S{1,16}|\s+$")
"""A word with the space before it, cut where it is so long that it is no word."""

_Item = TypeVar("_Item")


def time_scaled(trace: TraceLines, factor: float) -> TraceLines:
    """`factor` times faster: arrivals, think times and the trace's length are divided by it."""
    _check("--time-scale", factor)
    lines = [
        replace(
            line,
            arrival=line.arrival / factor,
            think_time=UNSET if isinstance(line.think_time, UnsetType) else line.think_time / factor,
        )
        for line in trace.lines
    ]
    return part(trace, lines, trace.span / factor, "time_scale", {"factor": factor})


def length_scaled(trace: TraceLines, prompt: float = 1.0, output: float = 1.0) -> TraceLines:
    """Prompts and answers `prompt` and `output` times as long, at least one token.

    A prompt of n tokens or words becomes round(n x factor) of them, number j being the old number floor(j / factor):
    repeated or dropped evenly, so that prompts which shared a beginning share as much of it as before. What the text
    said is lost, and recorded answers are left out when answers change.
    """
    _check("--prompt-scale", prompt)
    _check("--output-scale", output)
    header = replace(trace.header, hash_block_tokens=trace.header.hash_block_tokens * prompt) if prompt != 1 else None
    lines = [_length_scaled(line, prompt, output) for line in trace.lines]
    how = {"prompt": prompt, "output": output}
    return part(TraceLines(header or trace.header, trace.lines), lines, trace.span, "length_scale", how)


def thinned(trace: TraceLines, share: float, by: Unit, seed: int) -> TraceLines:
    """The requests of about `share` of the traffic: whole tenants, or whole sessions and single requests, drawn."""
    kept, unit = drawn_units(trace, by, share, seed), unit_of(by)
    lines = [line for line in trace.lines if unit(line) in kept]
    return part(trace, lines, trace.span, "thinned", {"share": share, "by": by, "seed": seed})


def _length_scaled(line: RequestLine, prompt: float, output: float) -> RequestLine:
    changed = replace(line)
    if prompt != 1:
        if not isinstance(line.prompt, UnsetType):
            changed.prompt = _text(line.prompt, prompt)
        if not isinstance(line.prompt_token_ids, UnsetType):
            changed.prompt_token_ids = _resampled(line.prompt_token_ids, prompt)
        if not isinstance(line.messages, UnsetType):
            changed.messages = [Message(one.role, _text(one.content, prompt)) for one in line.messages]
        if not isinstance(line.prompt_tokens, UnsetType):
            changed.prompt_tokens = _length(line.prompt_tokens, prompt)
    if output != 1:
        changed.max_tokens, changed.reference = _length(line.max_tokens, output), UNSET
        if not isinstance(line.output_tokens, UnsetType) and line.output_tokens > 0:
            changed.output_tokens = _length(line.output_tokens, output)
    return changed


def _length(tokens: int, factor: float) -> int:
    if tokens * factor > MAX_TOKENS:
        raise ValueError(f"a length of {tokens}, {factor:g} times as long: expected at most {MAX_TOKENS:,} tokens")
    return max(1, round(tokens * factor))


def _text(text: str, factor: float) -> str:
    pieces = _PIECE.findall(text)
    return "".join(_resampled(pieces, factor)) if pieces else text


def _resampled(items: Sequence[_Item], factor: float) -> list[_Item]:
    return [items[min(int(place / factor), len(items) - 1)] for place in range(_length(len(items), factor))]


def _check(what: str, factor: float) -> None:
    if not 0 < factor < math.inf:
        raise ValueError(f"{what} {factor:g}: expected a number above 0")
