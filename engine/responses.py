"""What clients get: OpenAI's response shapes, encoded once per chunk with the constant part made in advance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from engine.sequence import FinishReason
from engine.tokenizer import REPLACEMENT

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Piece:
    """A part of one answer. tokens and logprobs may be ahead of text by an incomplete character or stop string.

    Filled when log-probabilities were asked for: token_texts: each token on its own; text_offsets: where in the answer
    each begins; top_logprobs: the alternatives to each, from the likeliest down.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    token_texts: list[str] = field(default_factory=list)
    text_offsets: list[int] = field(default_factory=list)
    top_logprobs: list[list[tuple[str, float]]] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Usage(msgspec.Struct):
    """Token counts. Speculated tokens that were rejected count nowhere."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _CompletionLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class _CompletionChoice(msgspec.Struct):
    text: str
    logprobs: _CompletionLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | UnsetType
    prompt_token_ids: Sequence[int] | UnsetType = UNSET
    index: int = 0


class _TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class _TokenLogprob(_TopLogprob):
    top_logprobs: list[_TopLogprob]


class _ChatLogprobs(msgspec.Struct):
    content: list[_TokenLogprob]
    refusal: None = None


class _ChatText(msgspec.Struct):
    content: str
    role: Literal["assistant"] | UnsetType = "assistant"


class _ChatChoice(msgspec.Struct):
    message: _ChatText
    logprobs: _ChatLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | UnsetType
    index: int = 0


class _ChatChunkChoice(msgspec.Struct):
    delta: _ChatText
    logprobs: _ChatLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | UnsetType
    index: int = 0


@dataclass(frozen=True)
class ResponseOptions:
    """What the request asked to see. prompt: its token ids, shown with token_ids. num_top_logprobs: alternatives listed
    beside each token; None: no log-probabilities."""

    request_id: str
    model: str
    prompt: Sequence[int]
    num_top_logprobs: int | None
    token_ids: bool


class ResponseFormat(Protocol):
    """One endpoint's shapes. chunk and usage_chunk are whole server-sent events; first: nothing was sent before."""

    def chunk(self, piece: Piece, first: bool) -> bytes: ...
    def usage_chunk(self, usage: Usage) -> bytes: ...
    def whole(self, piece: Piece, usage: Usage) -> bytes: ...


class CompletionFormat:
    """/v1/completions."""

    def __init__(self, options: ResponseOptions) -> None:
        self._options = options
        self._head = _head(options, "text_completion")
        self._event = b"data: " + self._head + b',"choices":['

    def chunk(self, piece: Piece, first: bool) -> bytes:
        return self._event + _encode(self._choice(piece, first)) + b"]}\n\n"

    def usage_chunk(self, usage: Usage) -> bytes:
        return self._event + b'],"usage":' + _encode(usage) + b"}\n\n"

    def whole(self, piece: Piece, usage: Usage) -> bytes:
        return self._head + b',"choices":[' + _encode(self._choice(piece, True)) + _usage_end(usage)

    def _choice(self, piece: Piece, first: bool) -> _CompletionChoice:
        options = self._options
        logprobs = None
        if options.num_top_logprobs is not None:
            tops = _with_chosen(piece, options.num_top_logprobs) if options.num_top_logprobs else None
            logprobs = _CompletionLogprobs(piece.token_texts, piece.logprobs, tops, piece.text_offsets)
        prompt = options.prompt if options.token_ids and first else UNSET
        tokens = piece.tokens if options.token_ids else UNSET
        return _CompletionChoice(piece.text, logprobs, piece.finish_reason, tokens, prompt)


class ChatFormat:
    """/v1/chat/completions."""

    def __init__(self, options: ResponseOptions) -> None:
        self._options = options
        self._head = _head(options, "chat.completion")
        self._event = b"data: " + _head(options, "chat.completion.chunk") + b',"choices":['
        self._prompt = b',"prompt_token_ids":' + _encode(options.prompt) if options.token_ids else b""

    def chunk(self, piece: Piece, first: bool) -> bytes:
        text = _ChatText(piece.text) if first else _ChatText(piece.text, UNSET)
        choice = _ChatChunkChoice(text, self._logprobs(piece), piece.finish_reason, self._tokens(piece))
        return self._event + _encode(choice) + b"]" + (self._prompt if first else b"") + b"}\n\n"

    def usage_chunk(self, usage: Usage) -> bytes:
        return self._event + b'],"usage":' + _encode(usage) + b"}\n\n"

    def whole(self, piece: Piece, usage: Usage) -> bytes:
        choice = _ChatChoice(_ChatText(piece.text), self._logprobs(piece), piece.finish_reason, self._tokens(piece))
        return self._head + self._prompt + b',"choices":[' + _encode(choice) + _usage_end(usage)

    def _tokens(self, piece: Piece) -> list[int] | UnsetType:
        return piece.tokens if self._options.token_ids else UNSET

    def _logprobs(self, piece: Piece) -> _ChatLogprobs | None:
        count = self._options.num_top_logprobs
        if count is None:
            return None
        rows = zip(piece.token_texts, piece.logprobs, piece.top_logprobs, strict=True)
        return _ChatLogprobs([
            _TokenLogprob(text, x, _utf8(text), [_TopLogprob(t, y, _utf8(t)) for t, y in top[:count]])
            for text, x, top in rows
        ])  # fmt: skip


def _with_chosen(piece: Piece, count: int) -> list[dict[str, float]]:
    """The likeliest tokens of each position by text, and the chosen one; of equal texts the likeliest counts."""
    found = []
    for text, logprob, top in zip(piece.token_texts, piece.logprobs, piece.top_logprobs, strict=True):
        listed: dict[str, float] = {}
        for other, value in [*top[:count], (text, logprob)]:
            listed.setdefault(other, value)
        found.append(listed)
    return found


def _head(options: ResponseOptions, kind: str) -> bytes:
    """An object of the constant fields, left open."""
    fields = {"id": options.request_id, "object": kind, "created": int(time.time()), "model": options.model}
    return _encode(fields)[:-1]


def _utf8(text: str) -> list[int] | None:
    """The bytes of a token, unless it is a part of a character, whose bytes its text does not tell."""
    return None if REPLACEMENT in text else list(text.encode())


def _usage_end(usage: Usage) -> bytes:
    return b'],"usage":' + _encode(usage) + b"}"
