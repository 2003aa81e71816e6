"""The recording proxy: nothing that passes is changed, what finished becomes a line that load_trace reads."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from tests.fakes import PATIENCE
from tuner.traffic.recorder import Recording, record
from tuner.traffic.replay import replay
from tuner.traffic.trace import Request, Trace
from tuner.traffic.trace_file import load_trace


class Proxy:
    """A running recorder; `recording` is there once it has ended."""

    url: str
    recording: Recording


@asynccontextmanager
async def proxied(upstream: str, out: Path) -> AsyncIterator[Proxy]:
    proxy, ready, stop = Proxy(), asyncio.Event(), asyncio.Event()

    def on_ready(url: str) -> None:
        proxy.url = url
        ready.set()

    task = asyncio.create_task(record(upstream, "127.0.0.1", 0, out, on_ready=on_ready, stop=stop))
    await asyncio.wait({asyncio.create_task(ready.wait()), task}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield proxy
    finally:
        stop.set()
        proxy.recording = await task


async def post(url: str, body: dict[str, Any], path: str = "/v1/completions", **headers: str) -> bytes:
    async with aiohttp.ClientSession() as session, session.post(url + path, json=body, headers=headers) as response:
        return await response.read()


COMPLETION = {"model": "m", "prompt": "the secret of the tide", "max_tokens": 5, "stream": True}
USAGE = {"stream_options": {"include_usage": True}}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
WORDS = "w0 w1 w2 w3 w4 "

RECORDED = [
    # (the case, path, headers, body, fields of the request that was recorded)
    (
        "streamed text with usage",
        "/v1/completions",
        {"X-Tenant": "acme", "X-SLO-Class": "fast"},
        {**COMPLETION, **USAGE, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3},
        {
            "tenant": "acme", "slo_class": "fast", "prompt": "the secret of the tide", "max_tokens": 5,
            "output_tokens": 5, "prompt_tokens": 22, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3,
            "reference": WORDS, "output_tokens_estimated": False, "endpoint": "completions",
        },
    ),
    (
        "streamed text without usage: chunks are counted and marked",
        "/v1/completions",
        {},
        COMPLETION,
        {"output_tokens": 5, "output_tokens_estimated": True, "prompt_tokens": None, "tenant": "default"},
    ),
    ("not streamed", "/v1/completions", {}, {**COMPLETION, "stream": False}, {"output_tokens": 5, "reference": WORDS}),
    (
        "compressed answer",
        "/v1/completions",
        {"Accept-Encoding": "gzip"},
        {**COMPLETION, "stream": False},
        {"output_tokens": 5, "reference": WORDS},
    ),
    ("token ids", "/v1/completions", {}, {**COMPLETION, "prompt": [17, 18]}, {"prompt": (17, 18)}),
    ("a list of one text", "/v1/completions", {}, {**COMPLETION, "prompt": ["a"]}, {"prompt": "a"}),
    ("a list of one list of ids", "/v1/completions", {}, {**COMPLETION, "prompt": [[17]]}, {"prompt": (17,)}),
    (
        "chat, streamed",
        "/v1/chat/completions",
        {},
        {**CHAT, **USAGE, "stream": True},
        {"prompt": ({"role": "user", "content": "hi"},), "endpoint": "chat", "output_tokens": 5, "reference": WORDS},
    ),
    ("chat, not streamed", "/v1/chat/completions", {}, CHAT, {"endpoint": "chat", "output_tokens": 5}),
    (
        "chat with text parts",
        "/v1/chat/completions",
        {},
        {**CHAT, "messages": [{"role": "user", "content": PARTS}]},
        {"prompt": ({"role": "user", "content": "ab"},)},
    ),
    ("tenant from the user field", "/v1/completions", {}, {**COMPLETION, "user": "u7"}, {"tenant": "u7"}),
    ("no temperature: OpenAI's default", "/v1/completions", {}, COMPLETION, {"temperature": 1.0, "top_k": 0}),
    ("top_k -1 means off", "/v1/completions", {}, {**COMPLETION, "top_k": -1}, {"top_k": 0}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "headers", "body", "expected"), [row[1:] for row in RECORDED], ids=[row[0] for row in RECORDED]
)
async def test_finished_request_becomes_a_line(
    server: Any, tmp_path: Path, path: str, headers: dict[str, str], body: dict[str, Any], expected: dict[str, Any]
) -> None:
    out = tmp_path / "trace.jsonl"
    async with proxied(server.url, out) as proxy:
        await post(proxy.url, body, path, **headers)
    (recorded,) = load_trace(out).requests
    assert {key: getattr(recorded, key) for key in expected} == expected
    assert recorded.arrival == 0.0
    assert proxy.recording == Recording(1, {})
    assert server.seen[0].body == body, "the proxy must not alter the request"


SKIPPED = [
    ("server error", {"status": 500}, COMPLETION, "HTTP 500"),
    ("several prompts", {}, {**COMPLETION, "prompt": ["a", "b"]}, "several prompts in one request"),
    ("several answers", {}, {**COMPLETION, "n": 2}, "n > 1"),
    ("empty prompt", {}, {**COMPLETION, "prompt": ""}, "values that the trace format does not take"),
    ("no finish", {"finish": False}, COMPLETION, "answer without an end"),
    ("cut off", {"cut_after": 2}, COMPLETION, "upstream broke off"),
]


@pytest.mark.parametrize(("how", "body", "reason"), [row[1:] for row in SKIPPED], ids=[row[0] for row in SKIPPED])
async def test_what_cannot_be_recorded_is_counted_and_recording_goes_on(
    server: Any, script: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: dict[str, Any],
    body: dict[str, Any], reason: str,
) -> None:  # fmt: skip
    out = tmp_path / "trace.jsonl"
    caplog.set_level(logging.DEBUG)
    server.script = lambda body: script(**how)
    async with proxied(server.url, out) as proxy:
        try:
            await post(proxy.url, body)
        except aiohttp.ClientError:
            assert "cut_after" in how, "only a broken stream may break at the client"
        server.script = lambda body: script()
        await post(proxy.url, COMPLETION)
    assert proxy.recording == Recording(1, {reason: 1})
    assert len(load_trace(out).requests) == 1
    assert "tide" not in caplog.text


async def test_parts_of_a_tool_call_count_where_no_usage_tells(server: Any, script: Any, tmp_path: Path) -> None:
    call = {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}
    server.script = lambda body: script(first_delta=call)
    async with proxied(server.url, tmp_path / "trace.jsonl") as proxy:
        await post(proxy.url, {**CHAT, "stream": True}, "/v1/chat/completions")
    (recorded,) = load_trace(tmp_path / "trace.jsonl").requests
    assert (recorded.output_tokens, recorded.output_tokens_estimated) == (5, True)
    assert recorded.reference == WORDS.removeprefix("w0 ")


async def test_arrivals_count_from_the_first_request_and_late_ends_are_sorted(
    server: Any, script: Any, tmp_path: Path
) -> None:
    second_done = asyncio.Event()
    server.script = lambda body: script(wait=second_done.wait) if body["prompt"] == "first" else script()
    out = tmp_path / "trace.jsonl"
    async with proxied(server.url, out) as proxy:
        slow = asyncio.create_task(post(proxy.url, {**COMPLETION, "prompt": "first"}))
        while not server.seen:
            await asyncio.sleep(0.01)
        await post(proxy.url, {**COMPLETION, "prompt": "second"})
        second_done.set()
        await slow
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.get("prompt") for line in lines] == [None, "second", "first"]
    trace = load_trace(out)
    assert [request.prompt for request in trace.requests] == ["first", "second"]
    assert trace.requests[0].arrival == 0.0
    assert trace.provenance["source"] == "tune record"
    assert trace.provenance["upstream"].rstrip("/") == server.url


async def test_chunks_pass_one_by_one(server: Any, script: Any, tmp_path: Path) -> None:
    """The server sends each chunk only after the client holds the one before: a buffering proxy would hang."""
    held = asyncio.Semaphore(1)
    server.script = lambda body: script(between=lambda number: asyncio.wait_for(held.acquire(), PATIENCE))
    async with (
        proxied(server.url, tmp_path / "trace.jsonl") as proxy,
        aiohttp.ClientSession() as session,
        session.post(proxy.url + "/v1/completions", json=COMPLETION) as response,
    ):
        events = 0
        async for line in response.content:
            if line.startswith(b"data:"):
                events += 1
                held.release()
    assert events == 7


class RawUpstream:
    """Sends a fixed answer byte by byte as it stands and keeps what it received."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.received = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        self.received = head + await reader.readexactly(length)
        cut = random.Random(len(self.answer))
        position = 0
        while position < len(self.answer):
            step = cut.randint(1, 40)
            writer.write(self.answer[position : position + step])
            await writer.drain()
            position += step
        writer.close()


async def exchange(url: str, message: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(message)
    answer = await reader.read()
    writer.close()
    return answer


def unchunked(body: bytes) -> bytes:
    """RFC 9112 section 7.1."""
    whole = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if int(size, 16) == 0:
            return whole
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]


async def test_bytes_are_identical_in_both_directions(tmp_path: Path) -> None:
    event = b'data: {"choices": [{"text": "\xc3\xa9\\n", "finish_reason": null}]}\r\n\r\n'
    sse = event + b": comment\n\nevent: x\ndata:[DONE]\n\nrest"
    pieces = [sse[i : i + 11] for i in range(0, len(sse), 11)]
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    upstream = RawUpstream(
        b"HTTP/1.1 200 Fine\r\nContent-Type: text/event-stream\r\nX-Odd: \xc3\xa9\r\n"
        b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunked
    )
    body = b'{ "prompt":\t"x",  "weird" : [1,2 , 3], "max_tokens":1 }\n'
    message = (
        b"POST /v1/completions?a=%2Fb&c HTTP/1.1\r\nHost: somewhere\r\nX-Custom: kept\r\nAuthorization: Bearer k\r\n"
        b"Content-Length: " + str(len(body)).encode() + b"\r\nConnection: close\r\n\r\n" + body
    )
    listener = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    async with listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with proxied(url, tmp_path / "trace.jsonl") as proxy:
            answer = await exchange(proxy.url, message)
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert unchunked(rest) == sse
    assert head.startswith(b"HTTP/1.1 200 Fine")
    for header in (b"Content-Type: text/event-stream", b"X-Odd: \xc3\xa9", b"Set-Cookie: a=1", b"Set-Cookie: b=2"):
        assert header in head
    sent_head, _, sent_body = upstream.received.partition(b"\r\n\r\n")
    assert sent_body == body
    assert sent_head.startswith(b"POST /v1/completions?a=%2Fb&c HTTP/1.1")
    names = {line.split(b":")[0].lower() for line in sent_head.split(b"\r\n")[1:]}
    assert {b"x-custom", b"authorization"} <= names
    assert not names & {b"user-agent", b"accept", b"accept-encoding", b"content-type", b"transfer-encoding"}


async def test_other_paths_pass_unrecorded(server: Any, tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    async with proxied(server.url, out) as proxy, aiohttp.ClientSession() as session:
        for method, path, body in [
            ("GET", "/v1/models?x=1", b""),
            ("PUT", "/any", b"\x00\xff"),
            ("GET", "/v1/completions", b""),
        ]:
            async with session.request(method, proxy.url + path, data=body or None) as response:
                assert (response.status, await response.read()) == (207, body)
                assert response.headers["X-Method"] == method
                assert response.headers["X-Path"] == path
    assert proxy.recording == Recording(0, {})
    assert len(out.read_text().splitlines()) == 1


async def test_dead_upstream_is_a_502_and_recording_goes_on(server: Any, tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    async with proxied(server.url, out) as proxy, aiohttp.ClientSession() as session:
        await post(proxy.url, COMPLETION)
        await server.stop()
        async with session.post(proxy.url + "/v1/completions", json=COMPLETION) as response:
            assert response.status == 502
    assert proxy.recording.written == 1
    assert sum(proxy.recording.skipped.values()) == 1


async def test_client_that_leaves_is_not_recorded(server: Any, script: Any, tmp_path: Path) -> None:
    server.script = lambda body: script(tokens=100_000 if body["prompt"] == "endless" else 2, token_delay=0.001)
    async with proxied(server.url, tmp_path / "trace.jsonl") as proxy, aiohttp.ClientSession() as session:
        async with session.post(proxy.url + "/v1/completions", json={**COMPLETION, "prompt": "endless"}) as response:
            await response.content.readline()
            response.close()
        await post(proxy.url, COMPLETION)
    assert proxy.recording == Recording(1, {"client went away": 1})


async def test_file_is_private_and_flushed_line_by_line(server: Any, tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    async with proxied(server.url, out) as proxy:
        assert len(out.read_text().splitlines()) == 1, "the header comes first"
        assert stat.S_IMODE(out.stat().st_mode) == 0o600
        for count in (1, 2):
            await post(proxy.url, COMPLETION)
            assert len(load_trace(out).requests) == count


async def test_real_openai_client_through_the_proxy(server: Any, tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    async with (
        proxied(server.url, out) as proxy,
        openai.AsyncOpenAI(base_url=proxy.url + "/v1", api_key="sk-secret", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], max_tokens=4, stream=True,
            stream_options={"include_usage": True}, extra_headers={"X-Tenant": "acme"},
        )  # fmt: skip
        words = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        whole = await client.completions.create(model="m", prompt="hello", max_tokens=3)
    assert "".join(words) == "w0 w1 w2 w3 "
    assert whole.choices[0].text == "w0 w1 w2 "
    chat, text = load_trace(out).requests
    assert (chat.tenant, chat.output_tokens, chat.reference) == ("acme", 4, "w0 w1 w2 w3 ")
    assert (text.prompt, text.output_tokens) == ("hello", 3)
    assert "sk-secret" not in out.read_text()


async def test_recorded_replay_holds_the_same_requests(server: Any, script: Any, tmp_path: Path) -> None:
    server.script = lambda body: script(first_delay=0.02, token_delay=0.002)
    asked = (
        Request("a", 0.0, "acme", "chat", "first", 4, output_tokens=4, temperature=0.5, seed=1),
        Request("b", 0.1, "zeta", "docs", tuple(range(16, 60)), 3, output_tokens=3),
        Request("c", 0.2, "acme", "chat", ({"role": "user", "content": "hi"},), 5, endpoint="chat", output_tokens=5),
    )
    async with proxied(server.url, tmp_path / "one.jsonl") as proxy:
        await replay(asked, proxy.url, "m")
    first = load_trace(tmp_path / "one.jsonl")
    async with proxied(server.url, tmp_path / "two.jsonl") as proxy:
        await replay(first.requests, proxy.url, "m")
    second = load_trace(tmp_path / "two.jsonl")

    def essence(requests: tuple[Request, ...]) -> list[Request]:
        return [replace(r, id="", arrival=0.0, prompt_tokens=None, reference=None) for r in requests]

    assert essence(first.requests) == essence(asked)
    assert essence(second.requests) == essence(asked)
    assert isinstance(second, Trace)


async def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    out.write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        await record("http://127.0.0.1:1", "127.0.0.1", 0, out)
    assert out.read_text() == "mine"


async def test_bad_upstream_and_taken_port_are_users_mistakes(server: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="upstream: expected http://HOST:PORT"):
        await record("localhost:8000", "127.0.0.1", 0, tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="Address already in use"):
        await record(server.url, "127.0.0.1", int(server.url.rsplit(":", 1)[1]), tmp_path / "b.jsonl")
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_recording_cleanly(number: int, tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    program = (
        "import asyncio, sys; from pathlib import Path; from tuner.traffic.recorder import record\n"
        "print(asyncio.run(record('http://127.0.0.1:1', '127.0.0.1', 0, Path(sys.argv[1]),"
        " on_ready=lambda url: print(url, flush=True))))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(out)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    os.kill(process.pid, number)
    rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert rest.strip() == "Recording(written=0, skipped={})"
    assert len(out.read_text().splitlines()) == 1
