"""A fake OpenAI-compatible server behind the seam of the tests: it answers exactly what a test's script says."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web


@dataclass
class Script:
    """How to answer one request. tokens None: as many as max_tokens. first_delay, token_delay: seconds, so that token
    i leaves at first_delay + i token_delay. first_delta: of a chat stream, instead of the first token's. cut_after: the
    connection breaks after so many chunks. wait: awaited before the first token. raw: body sent instead of everything
    else."""

    status: int = 200
    tokens: int | None = None
    tokens_per_chunk: int = 1
    empty_chunks: bool = False
    usage: bool = True
    finish: bool = True
    cut_after: int | None = None
    first_delay: float = 0.0
    token_delay: float = 0.0
    first_delta: dict[str, Any] | None = None
    raw: bytes | None = None
    wait: Callable[[], Awaitable[Any]] | None = None
    between: Callable[[int], Awaitable[Any]] | None = None


@dataclass
class Seen:
    """One request as it reached the server."""

    path: str
    raw: bytes
    headers: dict[str, str]
    answered: bool = False

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)


@dataclass
class FakeServer:
    script: Callable[[dict[str, Any]], Script] = lambda body: Script()
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> None:
        application = web.Application(client_max_size=64 * 2**20)
        application.router.add_post("/v1/completions", self.completions)
        application.router.add_post("/v1/chat/completions", self.completions)
        application.router.add_route("*", "/{path:.*}", self.echo)
        self.runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None

    async def echo(self, request: web.Request) -> web.Response:
        """Anything else: what came is sent back, so that a test sees what the proxy changed."""
        raw = await request.read()
        self.seen.append(Seen(request.path_qs, raw, dict(request.headers)))
        return web.Response(body=raw, status=207, headers={"X-Method": request.method, "X-Path": request.raw_path})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.path, await request.read(), dict(request.headers))
        self.seen.append(seen)
        body = seen.body
        script = self.script(body)
        if script.wait is not None:
            await script.wait()
        if script.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=script.status)
        chat = request.path.endswith("chat/completions")
        response = await (self.stream if body.get("stream") else self.whole)(request, body, script, chat)
        seen.answered = True
        return response

    async def whole(self, request: web.Request, body: dict[str, Any], script: Script, chat: bool) -> web.Response:
        count = script.tokens or body["max_tokens"]
        words = "".join(f"w{i} " for i in range(count))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        choice.update({"message": {"role": "assistant", "content": words}} if chat else {"text": words})
        answer: dict[str, Any] = {"id": "c", "object": "x", "created": 0, "model": "fake", "choices": [choice]}
        if script.usage:
            answer["usage"] = self.usage(body, count)
        if script.raw is not None:
            return web.Response(body=script.raw, content_type="application/json")
        response = web.json_response(answer)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def stream(
        self, request: web.Request, body: dict[str, Any], script: Script, chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if script.raw is not None:
            await response.write(script.raw)
            return response
        await asyncio.sleep(script.first_delay)
        for number, event in enumerate(self.events(body, script, chat)):
            if number == script.cut_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            if script.between is not None:
                await script.between(number)
            await response.write(b"data: " + event + b"\n\n")
            await asyncio.sleep(script.token_delay)
        return response

    def events(self, body: dict[str, Any], script: Script, chat: bool) -> list[bytes]:
        count = script.tokens or body["max_tokens"]
        pieces = [
            list(range(i, min(i + script.tokens_per_chunk, count))) for i in range(0, count, script.tokens_per_chunk)
        ]
        events: list[Any] = []
        for piece in pieces:
            words = "".join(f"w{i} " for i in piece)
            if script.empty_chunks:
                events.append(self.chunk("", None, chat))
            choice = self.chunk(words, None, chat)
            if body.get("return_token_ids"):
                choice["choices"][0]["token_ids"] = piece
            events.append(choice)
        if script.first_delta is not None:
            events[0]["choices"][0]["delta"] = script.first_delta
        if script.finish:
            events.append(self.chunk("", "length", chat))
        if script.usage and body.get("stream_options", {}).get("include_usage"):
            events.append({**self.chunk("", None, chat), "choices": [], "usage": self.usage(body, count)})
        return [json.dumps(event).encode() for event in events] + [b"[DONE]"]

    @staticmethod
    def chunk(words: str, finish: str | None, chat: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice.update({"delta": {"content": words}} if chat else {"text": words})
        return {"id": "c", "object": "chunk", "created": 0, "model": "fake", "choices": [choice]}

    @staticmethod
    def usage(body: dict[str, Any], count: int) -> dict[str, int]:
        prompt = len(body.get("prompt") or body.get("messages"))
        return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    fake = FakeServer()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def script() -> type[Script]:
    """The Script class: test modules cannot import a conftest."""
    return Script


@pytest.fixture
def leap(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Call it to set the event loop's clock ahead by so many seconds: limits pass when a test says so, and by no
    slowness of the machine. The replay's timer is the loop's then, for a timerfd cannot leap."""
    ahead = 0.0

    def leap(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda loop: time.monotonic() + ahead)
    monkeypatch.setattr("tuner.traffic.timer.sys", SimpleNamespace(platform="any"))
    return leap


@pytest.fixture
def closed_port() -> Iterator[str]:
    """A URL where nobody listens, and nobody else can."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"
