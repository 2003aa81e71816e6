"""Exchange: one streamed completion on its way, each token stamped, each failure typed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any

import msgspec

from tuner.traffic.connections import Connections
from tuner.traffic.http1 import ResponseReader
from tuner.traffic.sse import Choice, Chunk, EventBuffer
from tuner.traffic.trace import Endpoint, Request, RequestRecord

API_KEY_VARIABLE = "SERVETUNE_API_KEY"
_KEY = os.urandom(16)
PATHS: dict[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def base_url(url: str) -> str:
    """Of what OpenAI's clients call a base URL, the part before /v1."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def request_body(model: str, request: Request, token_ids: bool = False) -> bytes:
    """JSON body of the streamed request. A recorded answer length is forced: max_tokens with ignore_eos.

    token_ids: ask for return_token_ids (bundled engine, vLLM), so that a chunk tells how many tokens it holds.
    """
    forced = expected_tokens(request)
    body: dict[str, Any] = {
        "model": model,
        "messages" if request.endpoint == "chat" else "prompt": request.prompt,
        "max_tokens": request.max_tokens if forced is None else forced,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.top_k:
        body["top_k"] = request.top_k
    if request.seed is not None:
        body["seed"] = request.seed
    if forced is not None:
        body["ignore_eos"] = True
    if token_ids:
        body["return_token_ids"] = True
    return msgspec.json.encode(body)


def expected_tokens(request: Request) -> int | None:
    """Output tokens that a replay forces; at least one, for no server makes none."""
    return None if request.output_tokens is None else max(1, request.output_tokens)


def authorization() -> dict[str, str]:
    """The header for $SERVETUNE_API_KEY, if it is set."""
    key = os.environ.get(API_KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def request_bytes(connections: Connections, model: str, request: Request, token_ids: bool = False) -> bytes:
    """The whole HTTP request. Raises ValueError for a name or key that no header can hold."""
    body = request_body(model, request, token_ids)
    fields = {
        "Host": connections.host,
        "Accept": "text/event-stream",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "X-Tenant": request.tenant,
        "X-SLO-Class": request.slo_class,
        **authorization(),
    }
    for name, value in fields.items():
        if any(character < " " or character == "\x7f" for character in value):
            raise ValueError(f"request {request.id}: {name}: expected text without control characters")
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {connections.path}{PATHS[request.endpoint]} HTTP/1.1\r\n{head}\r\n".encode() + body


def digest(text: bytes) -> int:
    """63 bits that tell texts apart within this process, and say nothing of them outside it."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=_KEY).digest(), "big") >> 1


class Exchange:
    """One request on its way, from scheduled to its end; record() tells what had arrived at any time.

    scheduled: seconds after start. start: origin of the record's times on the event loop's clock (seconds).
    on_end: called once when the exchange has ended. not_sent_reason: see RequestRecord.
    """

    __slots__ = (
        "_delivered", "_events", "_held", "_on_end", "_prompt", "_start", "_text", "end", "error", "finish_reason",
        "not_sent_reason", "payload", "request", "scheduled", "sent", "token_times", "usage",
    )  # fmt: skip

    def __init__(self, request: Request, scheduled: float, payload: bytes) -> None:
        self.request = request
        self.scheduled = scheduled
        self.payload = payload
        self.sent: float | None = None
        self.end: float | None = None
        self.token_times: list[float] = []
        self.usage: tuple[int | None, int | None] = (None, None)
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.not_sent_reason: str | None = None
        self._events = EventBuffer()
        self._text = bytearray()
        self._prompt = digest(msgspec.json.encode(request.prompt))
        self._held = 0
        self._delivered = False
        self._start = 0.0
        self._on_end: Callable[[Exchange], None] = lambda exchange: None

    def prepare(self, start: float, on_end: Callable[[Exchange], None]) -> None:
        """To be called before the exchange is carried."""
        self._start, self._on_end = start, on_end

    def begun(self, now: float) -> None:
        """See Carried."""
        self.sent = now - self._start
        self.payload = b""

    def received(self, response: ResponseReader, body: bytes, now: float) -> bool:
        """See Carried. What is not wanted is read to its end all the same, so that the connection stays good."""
        if self.error is not None or response.status is None:
            return False
        if response.status != 200:
            self.error = f"http_{response.status // 100}xx"
        elif response.content_type != "text/event-stream":
            self.error = "protocol"
            return True
        elif body:
            return self._read(body, now - self._start)
        return False

    def _read(self, body: bytes, time: float) -> bool:
        try:
            for chunk in self._events.feed(body):
                if chunk.error is not None:
                    self.error = "protocol"
                    return True
                self._take(chunk, time)
        except msgspec.DecodeError:
            self.error = "protocol"
            return True
        return False

    def ended(self, error: str | None, now: float) -> None:
        """See Carried. An answer that had finished is not spoilt by how its connection ended."""
        self.end = now - self._start
        if self.error is None and self.finish_reason is None:
            self.error = error or "truncated"
        self._on_end(self)

    def _take(self, chunk: Chunk, time: float) -> None:
        for choice in chunk.choices:
            self._take_tokens(choice, time)
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
        if chunk.usage is not None:
            self.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)

    def _take_tokens(self, choice: Choice, time: float) -> None:
        """A token without text counts from when the next text comes: until then the user has nothing. At the end of an
        answer it counts as it came, for a forced length may go on in tokens that have no text."""
        text = choice.content + choice.reasoning
        before = len(self.token_times)
        if choice.token_ids is not None:
            self._delivered = True
            self.token_times.extend([time] * len(choice.token_ids))
        elif text:
            self.token_times.append(time)
        if not text:
            self._held += len(choice.token_ids or ())
            return
        if self._held:
            first = before - self._held
            self.token_times[first : first + self._held] = [time] * self._held
            self._held = 0
        self._text += text.encode()

    def record(self) -> RequestRecord:
        """The exchange as it stands. Tokens are those delivered where chunks told their ids, otherwise those that usage
        claims, otherwise the chunks with text."""
        prompt_tokens, claimed = self.usage
        output_tokens = None if self._delivered else claimed
        times = self.token_times
        if output_tokens is None:
            output_tokens = len(times)
        elif len(times) > output_tokens:
            # More chunks than tokens: a server flushed held-back text. The last stamp is the end of the answer.
            times = times[: output_tokens - 1] + times[-1:] if output_tokens else []
        return RequestRecord(
            request_id=self.request.id,
            tenant=self.request.tenant,
            slo_class=self.request.slo_class,
            scheduled=self.scheduled,
            sent=self.sent,
            token_times=tuple(times),
            prompt_tokens=self.request.prompt_tokens if prompt_tokens is None else prompt_tokens,
            output_tokens=output_tokens,
            expected_tokens=expected_tokens(self.request),
            finish_reason=self.finish_reason,
            error=self.error,
            not_sent_reason=self.not_sent_reason,
            claimed_tokens=claimed,
            answer_digest=digest(bytes(self._text)) if self._text else None,
            prompt_digest=self._prompt if self._text else None,
        )
