"""Reading and writing trace files, format v1 (docs/trace-format.md, trace.schema.json)."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tuner.traffic.synthesis import DEFAULT_BLOCK_TOKENS, DEFAULT_VOCAB_SIZE, PromptSynthesizer
from tuner.traffic.trace import Prompt, Request, Trace

VERSION = 1
MAX_LINE_BYTES = 16 * 2**20

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Count = Annotated[int, Meta(ge=0, le=10_000_000)]
PositiveCount = Annotated[int, Meta(ge=1, le=10_000_000)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
HashId = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class HeaderLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """First line. seconds: see Trace. hash_block_tokens: prompt tokens under one of the hash_ids."""

    servetune_trace: int
    provenance: dict[str, Any]
    seconds: Seconds | UnsetType = UNSET
    hash_block_tokens: PositiveCount = DEFAULT_BLOCK_TOKENS


class Message(msgspec.Struct, forbid_unknown_fields=True):
    role: Name
    content: str


class RequestLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Every other line; keys and defaults as in docs/trace-format.md."""

    id: Name
    arrival: Seconds
    max_tokens: PositiveCount
    tenant: Name = "default"
    slo_class: Name = "default"
    endpoint: Literal["completions", "chat"] = "completions"
    prompt: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    prompt_token_ids: Annotated[list[TokenId], Meta(min_length=1)] | UnsetType = UNSET
    messages: Annotated[list[Message], Meta(min_length=1)] | UnsetType = UNSET
    prompt_tokens: PositiveCount | UnsetType = UNSET
    hash_ids: Annotated[list[HashId], Meta(min_length=1)] | UnsetType = UNSET
    output_tokens: Count | UnsetType = UNSET
    output_tokens_estimated: bool = False
    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Count = 0
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | UnsetType = UNSET
    reference: str | UnsetType = UNSET
    session: Name | UnsetType = UNSET
    think_time: Seconds | UnsetType = UNSET


_Line = TypeVar("_Line", HeaderLine, RequestLine)
_HEADER = msgspec.json.Decoder(HeaderLine)
_REQUEST = msgspec.json.Decoder(RequestLine)
_KEYED = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<key>.*)`)?$", re.DOTALL)


def load_trace(path: Path, *, seed: int = 0, vocab_size: int = DEFAULT_VOCAB_SIZE) -> Trace:
    """Read a trace; requests are sorted by arrival, and provenance says `sorted_on_load` if the file's were not.

    Requests that tell lengths only get token ids below vocab_size drawn from `seed` (synthesis.py). Raises ValueError
    with one line: file, line number, key, what was expected; never the content of a prompt.
    """
    lines = _lines(path)
    number, text = next(lines, (1, b""))
    header = _decode(_HEADER, text, f"{path}: line {number}")
    if header.servetune_trace != VERSION:
        raise ValueError(f"{path}: line {number}: servetune_trace: expected version {VERSION}")
    synthesizer = PromptSynthesizer(seed, vocab_size, header.hash_block_tokens)
    requests: list[Request] = []
    seen: dict[str, int] = {}
    for number, text in lines:
        where = f"{path}: line {number}"
        line = _decode(_REQUEST, text, where)
        if line.id in seen:
            raise ValueError(f"{where}: id: {line.id!r} is already used in line {seen[line.id]}; expected unique ids")
        seen[line.id] = number
        requests.append(_request(line, where, synthesizer, len(requests)))
    return _assemble(path, header, requests)


def save_trace(trace: Trace, path: Path) -> None:
    """Write `trace` to `path` (mode 0600) by renaming a finished temporary file over it.

    Raises ValueError naming the request and key when a request could not be read back.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(header_line(trace.provenance, trace.seconds))
            for request in trace.requests:
                file.write(request_line(request))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def header_line(provenance: dict[str, Any], seconds: float | None = None) -> bytes:
    """The first line of a trace file, newline included."""
    return msgspec.json.encode(HeaderLine(VERSION, provenance, _unset(seconds))) + b"\n"


def request_line(request: Request) -> bytes:
    """The line of one request, newline included. Raises ValueError where load_trace would refuse it."""
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
    where = f"request {request.id}"
    try:
        text = msgspec.json.encode(line)
    except UnicodeEncodeError:
        raise ValueError(f"{where}: text that is not Unicode (a lone surrogate)") from None
    if len(text) >= MAX_LINE_BYTES:
        raise ValueError(f"{where}: longer than {MAX_LINE_BYTES} bytes")
    _check(_decode(_REQUEST, text, where), where)
    return text + b"\n"


def _prompt_key(request: Request) -> str:
    if isinstance(request.prompt, str):
        return "prompt"
    return "messages" if request.endpoint == "chat" else "prompt_token_ids"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, text) of the lines that are not blank. Raises ValueError for an over-long one before it is in memory."""
    try:
        with path.open("rb") as file:
            number = 0
            while text := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(text) > MAX_LINE_BYTES:
                    raise ValueError(f"{path}: line {number}: longer than {MAX_LINE_BYTES} bytes")
                if not text.isspace():
                    yield number, text
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def _decode(decoder: msgspec.json.Decoder[_Line], text: bytes, where: str) -> _Line:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {_problem(str(error), decoder.type)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        what = "a header line" if decoder is _HEADER else "one request"
        raise ValueError(f"{where}: expected {what} as one JSON object; this is no JSON, or is cut off") from None


def _problem(message: str, line_type: type[msgspec.Struct]) -> str:
    """msgspec's message in our order: key first, then what was expected."""
    match = _KEYED.match(message)
    assert match is not None
    what, key = match["what"], match["key"]
    missing = re.match(r"Object missing required field `(.*)`", what)
    if missing:
        return f"{_joined(key, missing[1])}: expected, but missing"
    unknown = re.match(r"Object contains unknown field `(.*)`", what)
    if unknown:
        fields = ["role", "content"] if key else list(line_type.__struct_fields__)
        near = difflib.get_close_matches(unknown[1], fields, n=1)
        return f"{_joined(key, unknown[1])}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
    expectation = what[0].lower() + what[1:]
    return f"{key}: {expectation}" if key else expectation


def _joined(*parts: str | None) -> str:
    return ".".join(part for part in parts if part)


def _check(line: RequestLine, where: str) -> None:
    """What the type of a line cannot say: exactly one kind of prompt, the endpoint that takes it, whose turn it is."""
    given = [key for key in ("prompt", "prompt_token_ids", "messages") if getattr(line, key) is not UNSET]
    if len(given) > 1:
        raise ValueError(f"{where}: {given[1]}: expected exactly one kind of prompt, but {given[0]} is there too")
    if given and line.hash_ids is not UNSET:
        raise ValueError(f"{where}: hash_ids: expected only where prompt_tokens stands alone, but {given[0]} is there")
    if not given and line.prompt_tokens is UNSET:
        raise ValueError(f"{where}: prompt: expected one of prompt, prompt_token_ids, messages, prompt_tokens")
    if (given == ["messages"]) != (line.endpoint == "chat"):
        raise ValueError(f'{where}: endpoint: expected "chat" with messages and "completions" with any other prompt')
    if line.think_time is not UNSET and line.session is UNSET:
        raise ValueError(f"{where}: think_time: expected only with session, whose turn before it counts from")


def _request(line: RequestLine, where: str, synthesizer: PromptSynthesizer, index: int) -> Request:
    _check(line, where)
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


def _assemble(path: Path, header: HeaderLine, requests: list[Request]) -> Trace:
    if not requests:
        raise ValueError(f"{path}: holds no request; expected at least one line after the header")
    arrivals = [request.arrival for request in requests]
    provenance = header.provenance
    if any(later < earlier for earlier, later in zip(arrivals, arrivals[1:], strict=False)):
        requests.sort(key=lambda request: request.arrival)
        provenance = {**provenance, "sorted_on_load": True}
    _check_first_turns(path, requests)
    seconds = _none(header.seconds)
    if seconds is not None and seconds < requests[-1].arrival:
        raise ValueError(f"{path}: line 1: seconds: expected at least the last arrival, {requests[-1].arrival:g}")
    return Trace(tuple(requests), provenance, seconds)


def _check_first_turns(path: Path, requests: list[Request]) -> None:
    seen: set[str] = set()
    for request in requests:
        if request.session is not None and request.session not in seen:
            seen.add(request.session)
            if request.think_time is not None:
                raise ValueError(
                    f"{path}: request {request.id}: think_time: expected none, this is the first turn of its session"
                )


_Value = TypeVar("_Value")


def _none(value: _Value | UnsetType) -> _Value | None:
    return None if isinstance(value, UnsetType) else value


def _unset(value: _Value | None) -> _Value | UnsetType:
    return UNSET if value is None else value
