"""Server-sent events of an OpenAI-compatible stream, decoded with msgspec into what the tuner needs of them."""

from __future__ import annotations

import msgspec

_PREFIX = b"data:"
_DONE = b"[DONE]"


class Delta(msgspec.Struct, gc=False):
    """Chat streams: what was added. reasoning: vLLM's name for tokens before the answer; reasoning_content: what vLLM
    called them in 2025, as DeepSeek, SGLang and llama.cpp do. tool_calls: parts of calls, which nobody reads."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct, gc=False):
    """One choice of a chunk or of a whole answer. token_ids: with return_token_ids only."""

    text: str | None = None
    delta: Delta | None = None
    message: Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None

    @property
    def content(self) -> str:
        """The text of a completion, of a chat delta or of a chat message; without reasoning."""
        source = self.delta or self.message
        return (self.text if source is None else source.content) or ""

    @property
    def reasoning(self) -> str:
        """The reasoning of a chat delta; a server that fills both names says the same in both."""
        return "" if self.delta is None else self.delta.reasoning or self.delta.reasoning_content or ""

    @property
    def carries_token(self) -> bool:
        """Whether any text, reasoning included, or a part of a tool call is there."""
        return bool(self.content or self.reasoning or (self.delta is not None and self.delta.tool_calls))


class Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Chunk(msgspec.Struct, gc=False):
    """One event of a stream, or one whole answer. error: set when the server reports a failure inside the stream."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw | None = None


decode_chunk = msgspec.json.Decoder(Chunk).decode


class EventBuffer:
    """Cuts a byte stream into events; keeps an unfinished line until the rest of it arrives."""

    __slots__ = ("_rest", "done")

    def __init__(self) -> None:
        self._rest = b""
        self.done = False
        """Whether the final [DONE] has passed."""

    def feed(self, data: bytes) -> list[Chunk]:
        """The events that `data` completes, without the final [DONE]. Raises msgspec.DecodeError.

        A data line is a whole event: no known server splits the JSON of one over several lines.
        """
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        payloads = [line[5:].strip() for line in lines if line.startswith(_PREFIX)]
        self.done = self.done or _DONE in payloads
        return [decode_chunk(payload) for payload in payloads if payload != _DONE]
