"""What the recording proxy saw of one completion, and the trace line it becomes. Knows no network."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from tuner.traffic.sse import Chunk, EventBuffer, Usage, decode_chunk
from tuner.traffic.trace import Endpoint, Prompt, Request
from tuner.traffic.trace_file import line_of
from tuner.traffic.trace_lines import MAX_LINE_BYTES, RequestLine

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default of /v1/completions."""
DEFAULT_TEMPERATURE = 1.0
"""OpenAI's default, as servers apply it when a request names none."""
MAX_NAME = 256


class Unrecordable(ValueError):
    """The request was served, but cannot become a trace line; the message is the reason, free of content."""


class _Body(msgspec.Struct):
    """The fields of a completion request that a trace keeps; others are ignored."""

    prompt: Any = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    n: int | None = None
    user: str | None = None


_decode_body = msgspec.json.Decoder(_Body).decode


class Observation:
    """Bytes of one request and its answer, taken in as they pass. arrival: seconds from the first request."""

    def __init__(self, id: str, arrival: float, endpoint: Endpoint, tenant: str | None, slo_class: str | None) -> None:
        self.id = id
        self._arrival = arrival
        self._endpoint: Endpoint = endpoint
        self._tenant = tenant
        self._slo_class = slo_class
        self._body = bytearray()
        self._answer = _Answer()

    def request_bytes(self, data: bytes) -> None:
        """The next bytes of the request's body."""
        if len(self._body) <= MAX_LINE_BYTES:
            self._body += data

    def answer_begins(self, status: int, content_type: str, content_encoding: str, length: int | None) -> None:
        """Status and headers of the answer. length: bytes of its body, where they are told."""
        self._answer = _Answer(status, content_type == "text/event-stream", content_encoding.lower(), length)

    def answer_bytes(self, data: bytes) -> None:
        """The next bytes of the answer's body."""
        self._answer.feed(data)

    @property
    def answered(self) -> bool:
        """Whether a client that gets the bytes so far holds the whole answer: [DONE], or the body's last byte."""
        return self._answer.complete

    @property
    def finished(self) -> bool:
        """Whether the answer has said how it ended; usage may be still to come."""
        return self._answer.finished

    def line(self) -> RequestLine:
        """The finished request as a line of a trace file, not yet checked. Raises Unrecordable."""
        answer = self._answer
        answer.close()
        if len(self._body) > MAX_LINE_BYTES:
            raise Unrecordable("longer than a trace line may be")
        try:
            body = _decode_body(bytes(self._body))
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Unrecordable("request body not understood") from None
        if body.n is not None and body.n > 1:
            raise Unrecordable("n > 1")
        return line_of(self._request(body, answer))

    def _request(self, body: _Body, answer: _Answer) -> Request:
        tokens, estimated = answer.output_tokens
        limit = body.max_tokens or body.max_completion_tokens or tokens or DEFAULT_MAX_TOKENS
        return Request(
            id=self.id,
            arrival=self._arrival,
            tenant=(self._tenant or body.user or "default")[:MAX_NAME],
            slo_class=(self._slo_class or "default")[:MAX_NAME],
            prompt=_messages(body.messages) if self._endpoint == "chat" else _prompt(body.prompt),
            max_tokens=limit,
            endpoint=self._endpoint,
            prompt_tokens=answer.usage.prompt_tokens or None,
            output_tokens=tokens,
            output_tokens_estimated=estimated,
            temperature=DEFAULT_TEMPERATURE if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(0, body.top_k or 0),
            seed=body.seed,
            reference=answer.text,
        )


class _Answer:
    """The answer as far as it has passed: its text, usage and number of chunks with content."""

    def __init__(self, status: int = 0, streamed: bool = False, encoding: str = "", length: int | None = None) -> None:
        self._status = status
        self._streamed = streamed
        self._readable = encoding in ("", "identity", "gzip", "deflate")
        self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32) if encoding in ("gzip", "deflate") else None
        self._events = EventBuffer()
        self._whole = bytearray()
        self._parts: list[str] = []
        self._chunks = 0
        self._missing = length
        self.finished = False
        self.usage = Usage()

    def feed(self, data: bytes) -> None:
        """Never raises: what cannot be read is left out of the record, not out of the stream."""
        if self._missing is not None:
            self._missing -= len(data)
        if not self._readable:
            return
        try:
            plain = data if self._inflate is None else self._inflate.decompress(data)
            if not self._streamed:
                self._whole += plain
                return
            for chunk in self._events.feed(plain):
                self._take(chunk)
        except (msgspec.DecodeError, UnicodeDecodeError, zlib.error):
            self._readable = False

    @property
    def complete(self) -> bool:
        return self._events.done or self._missing == 0

    def close(self) -> None:
        """The answer has passed. Raises Unrecordable unless it is a completion that ended."""
        if self._status != 200:
            raise Unrecordable(f"HTTP {self._status}")
        if self._readable and not self._streamed:
            try:
                self._take(decode_chunk(bytes(self._whole)))
            except (msgspec.DecodeError, UnicodeDecodeError):
                self._readable = False
        if self._readable and not self.finished:
            raise Unrecordable("answer without an end")

    def _take(self, chunk: Chunk) -> None:
        for choice in chunk.choices:
            self._parts.append(choice.content)
            self._chunks += choice.carries_token
            self.finished = self.finished or choice.finish_reason is not None
        if chunk.usage is not None:
            self.usage = chunk.usage

    @property
    def output_tokens(self) -> tuple[int | None, bool]:
        """Tokens of the answer, and whether they are chunks counted for want of usage."""
        if not self._readable:
            return None, False
        if self.usage.completion_tokens is not None:
            return self.usage.completion_tokens, False
        return (self._chunks, True) if self._streamed else (None, False)

    @property
    def text(self) -> str | None:
        return "".join(self._parts) if self._readable else None


def _prompt(prompt: Any) -> Prompt:
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        return tuple(prompt)
    raise Unrecordable("several prompts in one request")


def _messages(messages: list[dict[str, Any]] | None) -> Prompt:
    return tuple({"role": turn.get("role", ""), "content": _text(turn.get("content"))} for turn in messages or [])


def _text(content: Any) -> str:
    """Text of a message; parts of type "text" are joined."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise Unrecordable("a message that is not text")
