"""The client of a replay: one streamed completion per request, each token stamped, each failure typed."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import aiohttp
import msgspec

from tuner.traffic.sse import Chunk, EventBuffer, decode_chunk
from tuner.traffic.trace import Prompt, Request, RequestRecord

API_KEY_VARIABLE = "SERVETUNE_API_KEY"
IDLE_SECONDS = 2.0
"""Idle connections are closed before the server does it: uvicorn's keep-alive is 5 s, and a race costs a request."""

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def open_session() -> aiohttp.ClientSession:
    """A session without a connection limit or a time limit; sends $SERVETUNE_API_KEY as bearer token if set."""
    headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
    key = os.environ.get(API_KEY_VARIABLE)
    if key:
        headers["Authorization"] = f"Bearer {key}"
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=IDLE_SECONDS)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(), headers=headers)


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


async def send(
    session: aiohttp.ClientSession,
    base_url: str,
    model: str,
    request: Request,
    start: float,
    *,
    scheduled: float | None = None,
    token_ids: bool = False,
    timeout: float | None = None,
) -> RequestRecord:
    """Send one request now and follow its stream to the end. Never raises for what the server or network does.

    start: origin of the record's times on the event loop's clock (seconds). scheduled: seconds after start at which
    it was due; default: now. timeout: seconds for the whole exchange.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() - start if scheduled is None else scheduled
    exchange = Exchange(request, due, base_url, request_body(model, request, token_ids))
    try:
        async with asyncio.timeout(timeout):
            await exchange.run(session, start)
    except TimeoutError:
        exchange.error = "timeout"
    return exchange.record()


async def complete(session: aiohttp.ClientSession, base_url: str, model: str, prompt: Prompt, max_tokens: int) -> str:
    """Greedy text after `prompt`, not streamed. Raises aiohttp.ClientError, also for an answer that is none."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
    async with session.post(base_url.rstrip("/") + PATHS["completions"], data=msgspec.json.encode(body)) as response:
        response.raise_for_status()
        answer = await response.read()
    try:
        return decode_chunk(answer).choices[0].content
    except (msgspec.DecodeError, IndexError):
        raise aiohttp.ClientPayloadError("the answer is no completion") from None


class Exchange:
    """One request on its way. Whoever cancels run() still finds in record() what had arrived until then."""

    __slots__ = (
        "_body", "_events", "_headers", "_url", "error", "finish_reason", "request", "scheduled", "sent", "token_times",
        "usage",
    )  # fmt: skip

    def __init__(self, request: Request, scheduled: float, base_url: str, body: bytes) -> None:
        self.request = request
        self.scheduled = scheduled
        self.sent: float | None = None
        self.token_times: list[float] = []
        self.usage: tuple[int | None, int | None] = (None, None)
        self.finish_reason: str | None = None
        self.error: str | None = None
        self._url = base_url.rstrip("/") + PATHS[request.endpoint]
        self._headers = {"X-Tenant": request.tenant, "X-SLO-Class": request.slo_class}
        self._body = body
        self._events = EventBuffer()

    async def run(self, session: aiohttp.ClientSession, start: float) -> None:
        """Send and receive; what goes wrong ends up in `error`. Only cancellation leaves this function."""
        now = asyncio.get_running_loop().time
        self.sent = now() - start
        try:
            async with session.post(
                self._url, data=self._body, headers=self._headers, allow_redirects=False
            ) as response:
                self.error = await self._receive(response, start)
        except aiohttp.ClientConnectorError as error:
            self.error = "refused" if isinstance(error.os_error, ConnectionRefusedError) else "connection"
        except aiohttp.ClientPayloadError:
            self.error = "truncated" if self.finish_reason is None else None
        except (aiohttp.ClientError, OSError):
            self.error = "connection"
        except msgspec.DecodeError:
            self.error = "protocol"

    async def _receive(self, response: aiohttp.ClientResponse, start: float) -> str | None:
        if response.status != 200:
            await response.read()
            return f"http_{response.status // 100}xx"
        if response.content_type != "text/event-stream":
            return "protocol"
        now = asyncio.get_running_loop().time
        # To the end of the stream, not to [DONE]: an unread tail would spoil the connection for the next request.
        async for data in response.content.iter_any():
            time = now() - start
            for chunk in self._events.feed(data):
                if chunk.error is not None:
                    return "protocol"
                self._take(chunk, time)
        return "truncated" if self.finish_reason is None else None

    def _take(self, chunk: Chunk, time: float) -> None:
        for choice in chunk.choices:
            if choice.token_ids is not None:
                self.token_times.extend([time] * len(choice.token_ids))
            elif choice.carries_token:
                self.token_times.append(time)
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
        if chunk.usage is not None:
            self.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)

    def record(self) -> RequestRecord:
        """The exchange as it stands; counts come from usage where the server told it."""
        prompt_tokens, output_tokens = self.usage
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
        )
