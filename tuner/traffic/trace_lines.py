"""The lines of a trace file, format v1 (docs/trace-format.md, trace.schema.json): read one by one, checked, written."""

from __future__ import annotations

import difflib
import logging
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tuner.traffic.synthesis import DEFAULT_BLOCK_TOKENS

log = logging.getLogger(__name__)

VERSION = 1
MAX_LINE_BYTES = 16 * 2**20

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Count = Annotated[int, Meta(ge=0, le=10_000_000)]
PositiveCount = Annotated[int, Meta(ge=1, le=10_000_000)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
HashId = Annotated[int, Meta(ge=0, le=2**63 - 1)]
BlockTokens = Annotated[float, Meta(gt=0, le=10_000_000)]
"""A fraction where lengths were scaled."""
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class HeaderLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """First line. seconds: see Trace. hash_block_tokens: prompt tokens under one of the hash_ids."""

    servetune_trace: int
    provenance: dict[str, Any]
    seconds: Seconds | UnsetType = UNSET
    hash_block_tokens: PositiveCount | BlockTokens = DEFAULT_BLOCK_TOKENS


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


class TraceReader:
    """Iterates over the request lines of a file in the file's order; `header` is read at once.

    A recorder that was killed leaves a last line without its end: such a line is logged and left out, and `cut_off`
    is its number once the iteration is over. Raises ValueError with one line for anything else: file, line number,
    key, what was expected; never the content of a prompt.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cut_off: int | None = None
        self._lines = _lines(path)
        number, text = next(self._lines, (1, b""))
        where = f"{path}: line {number}"
        self.header = _decode(_HEADER, text, where)
        if self.header.servetune_trace != VERSION:
            raise ValueError(f"{where}: servetune_trace: expected version {VERSION}")

    def __iter__(self) -> Iterator[RequestLine]:
        seen: dict[str, int] = {}
        for number, text in self._lines:
            where = f"{self.path}: line {number}"
            if not text.endswith(b"\n") and _is_cut_off(text):
                self.cut_off = number
                log.warning("%s: cut off, as by the end of its recorder; left out", where)
                return
            line = _decode(_REQUEST, text, where)
            if line.id in seen:
                raise ValueError(
                    f"{where}: id: {line.id!r} is already used in line {seen[line.id]}; expected unique ids"
                )
            seen[line.id] = number
            check_line(line, where)
            yield line


class TraceLines(NamedTuple):
    """A whole file: lines sorted by arrival; header with what was noticed on reading in its provenance."""

    header: HeaderLine
    lines: list[RequestLine]

    @property
    def span(self) -> float:
        """Seconds over which requests were offered: the header's if known, otherwise up to the last arrival."""
        return self.lines[-1].arrival if isinstance(self.header.seconds, UnsetType) else self.header.seconds


def read_lines(path: Path) -> TraceLines:
    """All lines of a trace file, without making prompts of lengths. Raises ValueError as TraceReader does."""
    reader = TraceReader(path)
    lines = list(reader)
    provenance = arranged(reader, lines)
    return TraceLines(msgspec.structs.replace(reader.header, provenance=provenance), lines)


class Turn(Protocol):
    """What a request, its line and its facts have in common."""

    @property
    def id(self) -> str: ...
    @property
    def arrival(self) -> float: ...
    @property
    def session(self) -> object: ...
    @property
    def think_time(self) -> object: ...


_Item = TypeVar("_Item", bound=Turn)


def arranged(reader: TraceReader, items: list[_Item]) -> dict[str, Any]:
    """Sorts what was read in place and returns the provenance with what was noticed. Raises ValueError."""
    if not items:
        raise ValueError(f"{reader.path}: holds no request; expected at least one line after the header")
    provenance = dict(reader.header.provenance)
    if reader.cut_off is not None:
        provenance["cut_off_line"] = reader.cut_off
    if any(later.arrival < earlier.arrival for earlier, later in zip(items, items[1:], strict=False)):
        items.sort(key=lambda item: item.arrival)
        provenance["sorted_on_load"] = True
    _check_first_turns(reader.path, items)
    seconds = reader.header.seconds
    if not isinstance(seconds, UnsetType) and seconds < items[-1].arrival:
        raise ValueError(f"{reader.path}: line 1: seconds: expected at least the last arrival, {items[-1].arrival:g}")
    return provenance


def _check_first_turns(path: Path, items: Iterable[Turn]) -> None:
    seen: set[object] = set()
    for item in items:
        if item.session and item.session not in seen:
            seen.add(item.session)
            if item.think_time is not UNSET and item.think_time is not None:
                raise ValueError(
                    f"{path}: request {item.id}: think_time: expected none, this is the first turn of its session"
                )


def write_lines(path: Path, header: HeaderLine, lines: Iterable[RequestLine]) -> None:
    """Write a trace file (mode 0600) by renaming a finished temporary file over `path`.

    Raises ValueError naming the request and key when a line could not be read back.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(encode_header(header))
            for line in lines:
                file.write(encode_line(line))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def encode_header(header: HeaderLine) -> bytes:
    """The first line of a trace file, newline included."""
    return msgspec.json.encode(header) + b"\n"


def encode_line(line: RequestLine) -> bytes:
    """The line of one request, newline included. Raises ValueError where a reader would refuse it."""
    where = f"request {line.id}"
    try:
        text = msgspec.json.encode(line)
    except UnicodeEncodeError:
        raise ValueError(f"{where}: text that is not Unicode (a lone surrogate)") from None
    if len(text) >= MAX_LINE_BYTES:
        raise ValueError(f"{where}: longer than {MAX_LINE_BYTES} bytes")
    check_line(_decode(_REQUEST, text, where), where)
    return text + b"\n"


def read_back(line: RequestLine) -> RequestLine:
    """`line` as a reader would find it. Raises ValueError as encode_line does."""
    return _REQUEST.decode(encode_line(line))


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
                    yield number, text.removeprefix(BOM_UTF8) if number == 1 else text
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def _is_cut_off(text: bytes) -> bool:
    """Whether `text` is the beginning of JSON. A cut behind "1." or "-" is malformed to msgspec, before it is not."""
    try:
        msgspec.json.decode(text.rstrip(b"+-.0123456789eE"))
    except msgspec.DecodeError as error:
        return str(error) == "Input data was truncated"
    except UnicodeDecodeError:
        return False
    return False


def _decode(decoder: msgspec.json.Decoder[_Line], text: bytes, where: str) -> _Line:
    hint = "; a trace begins with a header, which tune trace import writes" if decoder is _HEADER else ""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {_problem(str(error), decoder.type)}{hint}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        what = "a header line" if decoder is _HEADER else "one request"
        raise ValueError(f"{where}: expected {what} as one JSON object; this is no JSON, or is cut off{hint}") from None


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


def check_line(line: RequestLine, where: str) -> None:
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
