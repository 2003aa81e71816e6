"""Traces as files, format v1: lines become requests with prompts, and back (trace_lines.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from msgspec import UNSET, UnsetType

from tuner.traffic.synthesis import DEFAULT_VOCAB_SIZE, PromptSynthesizer
from tuner.traffic.trace import Prompt, Request, Trace
from tuner.traffic.trace_lines import VERSION, HeaderLine, RequestLine, TraceReader, arranged, write_lines


def load_trace(path: Path, *, seed: int = 0, vocab_size: int = DEFAULT_VOCAB_SIZE) -> Trace:
    """Read a trace; requests are sorted by arrival, and provenance says `sorted_on_load` if the file's were not.

    Requests that tell lengths only get token ids below vocab_size drawn from `seed` (synthesis.py). Raises ValueError
    with one line: file, line number, key, what was expected; never the content of a prompt.
    """
    reader = TraceReader(path)
    synthesizer = PromptSynthesizer(seed, vocab_size, reader.header.hash_block_tokens)
    requests = [_request(line, synthesizer, index) for index, line in enumerate(reader)]
    provenance = arranged(reader, requests)
    return Trace(tuple(requests), provenance, _none(reader.header.seconds))


def save_trace(trace: Trace, path: Path) -> None:
    """Write `trace` to `path` (mode 0600) by renaming a finished temporary file over it.

    Raises ValueError naming the request and key when a request could not be read back.
    """
    header = HeaderLine(VERSION, trace.provenance, _unset(trace.seconds))
    write_lines(path, header, map(line_of, trace.requests))


def line_of(request: Request) -> RequestLine:
    """The line that a request becomes; encode_line checks it."""
    prompt: Any = request.prompt
    line = RequestLine(
        id=request.id,
        arrival=request.arrival,
        max_tokens=request.max_tokens,
        tenant=request.tenant,
        slo_class=request.slo_class,
        endpoint=request.endpoint,
        prompt_tokens=_unset(request.prompt_tokens),
        output_tokens=_unset(request.output_tokens),
        output_tokens_estimated=request.output_tokens_estimated,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=_unset(request.seed),
        reference=_unset(request.reference),
        session=_unset(request.session),
        think_time=_unset(request.think_time),
    )
    setattr(line, _prompt_key(request), prompt if isinstance(prompt, str) else list(prompt))
    return line


def _prompt_key(request: Request) -> str:
    if isinstance(request.prompt, str):
        return "prompt"
    return "messages" if request.endpoint == "chat" else "prompt_token_ids"


def _request(line: RequestLine, synthesizer: PromptSynthesizer, index: int) -> Request:
    return Request(
        id=line.id,
        arrival=line.arrival,
        tenant=line.tenant,
        slo_class=line.slo_class,
        prompt=_prompt(line, synthesizer, index),
        max_tokens=line.max_tokens,
        endpoint=line.endpoint,
        prompt_tokens=_none(line.prompt_tokens),
        output_tokens=_none(line.output_tokens),
        temperature=line.temperature,
        top_p=line.top_p,
        top_k=line.top_k,
        seed=_none(line.seed),
        reference=_none(line.reference),
        output_tokens_estimated=line.output_tokens_estimated,
        session=_none(line.session),
        think_time=_none(line.think_time),
    )


def _prompt(line: RequestLine, synthesizer: PromptSynthesizer, index: int) -> Prompt:
    if not isinstance(line.prompt, UnsetType):
        return line.prompt
    if not isinstance(line.prompt_token_ids, UnsetType):
        return tuple(line.prompt_token_ids)
    if not isinstance(line.messages, UnsetType):
        return tuple({"role": message.role, "content": message.content} for message in line.messages)
    assert not isinstance(line.prompt_tokens, UnsetType)
    return synthesizer.prompt(line.prompt_tokens, index, _none(line.hash_ids) or ())


_Value = TypeVar("_Value")


def _none(value: _Value | UnsetType) -> _Value | None:
    return None if isinstance(value, UnsetType) else value


def _unset(value: _Value | None) -> _Value | UnsetType:
    return UNSET if value is None else value
