"""`tune record` under misfortune: dead upstreams, kill -9, full disks; and what it must not write down."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from typer.testing import CliRunner

from tests.fakes import PATIENCE, cases
from tuner.cli.__main__ import app
from tuner.traffic.anonymize import Anonymizer
from tuner.traffic.recorder import Recording, record
from tuner.traffic.redaction import REPLACEMENT, Redactor
from tuner.traffic.trace_file import load_trace
from tuner.traffic.trace_lines import read_lines

ROOT = Path(__file__).parents[3]


class Proxy:
    """A running recorder; `recording` is there once it has ended."""

    url: str
    recording: Recording


@asynccontextmanager
async def proxied(upstream: str, out: Path, **options: Any) -> AsyncIterator[Proxy]:
    proxy, ready, stop = Proxy(), asyncio.Event(), asyncio.Event()

    def on_ready(url: str) -> None:
        proxy.url = url
        ready.set()

    task = asyncio.create_task(record(upstream, "127.0.0.1", 0, out, on_ready=on_ready, stop=stop, **options))
    await asyncio.wait({asyncio.create_task(ready.wait()), task}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield proxy
    finally:
        stop.set()
        proxy.recording = await task


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-none", max_retries=0)


async def chat(user: openai.AsyncOpenAI, text: str) -> str:
    """A streamed chat, read to its end."""
    stream = await user.chat.completions.create(
        model="m", messages=[{"role": "user", "content": text}], max_tokens=4, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


class Recorder:
    """`tune record` as a process of its own, with what it says on standard error."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process, self.url = process, url

    @classmethod
    async def start(cls, upstream: str, out: Path, *options: str) -> Recorder:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tuner.cli", "record", "--upstream", upstream, "--out", str(out), *options,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip
        assert process.stdout is not None
        first = (await asyncio.wait_for(process.stdout.readline(), PATIENCE)).decode()
        assert first.startswith("listening "), await process.communicate()
        return cls(process, first.split()[1])

    async def end(self, number: signal.Signals) -> tuple[str, str]:
        """What it had to say after this signal."""
        self.process.send_signal(number)
        out, err = await asyncio.wait_for(self.process.communicate(), PATIENCE)
        return out.decode(), err.decode()


async def test_upstream_may_die_and_come_back(server: Any, script: Any, tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    port = int(server.url.rsplit(":", 1)[1])
    async with proxied(server.url, out) as proxy, client(proxy.url) as user:
        assert await chat(user, "first") == "w0 w1 w2 w3 "
        server.script = lambda body: script(cut_after=2)
        with pytest.raises((openai.APIError, aiohttp.ClientError)):
            await chat(user, "dies in the middle")
        await server.stop()
        for _ in range(2):
            with pytest.raises(openai.InternalServerError) as caught:
                await chat(user, "nobody there")
            assert caught.value.status_code == 502
        server.script = lambda body: script()
        await server.start(port)
        assert await chat(user, "last") == "w0 w1 w2 w3 "
    assert proxy.recording.written == 2
    assert dict(proxy.recording.skipped) == {"upstream broke off": 1, "upstream failed (ClientConnectorError)": 2}
    assert [request.prompt[0]["content"] for request in load_trace(out).requests] == ["first", "last"]  # type: ignore[index]


async def test_line_is_on_file_before_the_client_holds_the_answer(server: Any, script: Any, tmp_path: Path) -> None:
    """The upstream keeps its stream open behind [DONE]: at that moment the line must be there already."""
    out = tmp_path / "trace.jsonl"
    server.script = lambda body: script(tokens=2, token_delay=0.3)
    body = {"model": "m", "prompt": "tide", "max_tokens": 2}
    async with proxied(server.url, out) as proxy, aiohttp.ClientSession() as session:
        async with session.post(f"{proxy.url}/v1/completions", json={**body, "stream": True}) as response:
            async for line in response.content:
                if line.startswith(b"data: [DONE]"):
                    assert len(load_trace(out).requests) == 1
                    break
        async with session.post(f"{proxy.url}/v1/completions", json=body) as response:
            await response.read()
            assert len(load_trace(out).requests) == 2
    assert proxy.recording == Recording(2, {})


async def test_client_that_leaves_after_the_last_word_is_recorded(server: Any, script: Any, tmp_path: Path) -> None:
    """Some clients close at finish_reason, before usage and [DONE]."""
    out = tmp_path / "trace.jsonl"
    server.script = lambda body: script(tokens=2, token_delay=0.05)
    async with proxied(server.url, out) as proxy, aiohttp.ClientSession() as session:
        body = {"model": "m", "prompt": "tide", "max_tokens": 2, "stream": True}
        async with session.post(f"{proxy.url}/v1/completions", json=body) as response:
            async for line in response.content:
                if b'"finish_reason": "length"' in line:
                    break
            response.close()
        while len(out.read_text().splitlines()) < 2:  # a header and the request
            await asyncio.sleep(0.01)
    assert proxy.recording == Recording(1, {})


@asynccontextmanager
async def silent_upstream() -> AsyncIterator[tuple[str, asyncio.Queue[str]]]:
    """A server that takes each request and answers nothing; tells when one has come, and when its client has left."""
    told: asyncio.Queue[str] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        told.put_nowait("asked")
        await reader.read()
        told.put_nowait("left")
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as upstream:
        yield f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}", told


async def test_client_that_leaves_before_the_answer_leaves_the_upstream_too(tmp_path: Path) -> None:
    """Else the engine would work on for nobody, and the recorded server would be a busier one than the real one."""
    async with (
        silent_upstream() as (url, told),
        proxied(url, tmp_path / "trace.jsonl") as proxy,
        aiohttp.ClientSession() as session,
    ):
        body = {"model": "m", "prompt": "tide", "max_tokens": 2}
        asking = asyncio.create_task(session.post(f"{proxy.url}/v1/completions", json=body))
        assert await asyncio.wait_for(told.get(), PATIENCE) == "asked"
        asking.cancel()
        assert await asyncio.wait_for(told.get(), PATIENCE) == "left"
    assert proxy.recording == Recording(0, {"client went away": 1})


async def test_what_the_end_cuts_off_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.traffic.recorder.SHUTDOWN_SECONDS", 0.1)
    async with silent_upstream() as (url, told), aiohttp.ClientSession() as session:
        async with proxied(url, tmp_path / "trace.jsonl") as proxy:
            body = {"model": "m", "prompt": "tide", "max_tokens": 2, "stream": True}
            asking = asyncio.create_task(session.post(f"{proxy.url}/v1/completions", json=body))
            assert await asyncio.wait_for(told.get(), PATIENCE) == "asked"
        with pytest.raises(aiohttp.ClientError):
            await asking
    assert proxy.recording == Recording(0, {"recording ended": 1})


async def test_a_second_signal_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.traffic.recorder.SHUTDOWN_SECONDS", 3600.0)
    async with silent_upstream() as (url, told), aiohttp.ClientSession() as session:
        async with proxied(url, tmp_path / "trace.jsonl") as proxy:
            body = {"model": "m", "prompt": "tide", "max_tokens": 2}
            asking = asyncio.create_task(session.post(f"{proxy.url}/v1/completions", json=body))
            assert await asyncio.wait_for(told.get(), PATIENCE) == "asked"
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(0.1)
            assert await asyncio.wait_for(told.get(), PATIENCE) == "left"
        with pytest.raises(aiohttp.ClientError):
            await asking
    assert proxy.recording == Recording(0, {"recording ended": 1})


async def test_the_base_url_of_openai_clients_will_do_as_upstream(server: Any, tmp_path: Path) -> None:
    async with proxied(f"{server.url}/v1/", tmp_path / "trace.jsonl") as proxy, client(proxy.url) as user:
        assert await chat(user, "hi") == "w0 w1 w2 w3 "
    assert proxy.recording == Recording(1, {})


async def test_kill_9_loses_nothing_that_a_client_holds(server: Any, script: Any, tmp_path: Path) -> None:
    """Eight clients at once, killed in the middle, three times; a line that was cut off is left out on loading."""
    server.script = lambda body: script(token_delay=0.0005)
    for attempt in range(3):
        out = tmp_path / f"{attempt}.jsonl"
        recorder = await Recorder.start(server.url, out)
        held: set[str] = set()

        async def ask_on(name: int, url: str = recorder.url, held: set[str] = held) -> None:
            async with client(url) as user:
                for number in range(10_000):
                    text = f"{name} asks {number}"
                    try:
                        if await chat(user, text) == "w0 w1 w2 w3 ":
                            held.add(text)
                    except (openai.APIError, aiohttp.ClientError):
                        return

        users = [asyncio.create_task(ask_on(name)) for name in range(8)]
        while len(held) < 20 + 7 * attempt:
            await asyncio.sleep(0.001)
        await recorder.end(signal.SIGKILL)
        await asyncio.wait_for(asyncio.gather(*users, return_exceptions=True), PATIENCE)
        written = {request.prompt[0]["content"] for request in load_trace(out).requests}  # type: ignore[index]
        assert held <= written


async def test_full_disk_is_one_line_and_the_traffic_goes_on(server: Any, tmp_path: Path) -> None:
    """A limit on the file's size stands in for the disk; lifted, the recording goes on behind the last whole line."""
    out = tmp_path / "trace.jsonl"
    recorder = await Recorder.start(server.url, out)
    async with client(recorder.url) as user:
        await chat(user, "the tide before")
        limit = resource.prlimit(recorder.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(recorder.process.pid, resource.RLIMIT_FSIZE, (out.stat().st_size + 50, limit[1]))
        for _ in range(3):
            assert await chat(user, "the tide while full") == "w0 w1 w2 w3 "
        assert len(load_trace(out).requests) == 1 and out.read_bytes().endswith(b"}\n")
        resource.prlimit(recorder.process.pid, resource.RLIMIT_FSIZE, limit)
        await chat(user, "the tide after")
    said, complaints = await recorder.end(signal.SIGINT)
    assert complaints.splitlines() == [
        f"{out}: File too large; requests pass on unrecorded until it can be written again",
        f"{out}: can be written again; recording goes on",
    ]
    assert said == f"wrote 2 requests to {out} (left out, 3 trace file: File too large)\n"
    trace = load_trace(out)
    assert [request.prompt[0]["content"] for request in trace.requests] == ["the tide before", "the tide after"]  # type: ignore[index]
    assert "cut_off_line" not in trace.provenance


SECRET = "ada@example.org"
REDACTED = [
    # (the case, path, headers, body, fields of the line that was written)
    (
        "text",
        "completions",
        {},
        {"prompt": f"write to {SECRET} and {SECRET}"},
        {"prompt": f"write to {REPLACEMENT} and {REPLACEMENT}"},
    ),
    (
        "messages",
        "chat/completions",
        {},
        {"messages": [{"role": "user", "content": f"I am {SECRET}"}]},
        {"messages": [{"role": "user", "content": f"I am {REPLACEMENT}"}]},
    ),
    ("tenant", "completions", {"X-Tenant": SECRET}, {"prompt": "hi"}, {"tenant": REPLACEMENT}),
    ("user", "completions", {}, {"prompt": "hi", "user": SECRET}, {"tenant": REPLACEMENT}),
    (
        "token ids cannot be searched",
        "completions",
        {},
        {"prompt": [97, 100, 97, 64]},
        {"prompt_tokens": 4, "prompt_token_ids": None, "prompt": None},
    ),
    ("answer", "completions", {}, {"prompt": "hi"}, {"reference": f"w0 {REPLACEMENT} w2 "}),
]


@pytest.mark.parametrize(("path", "headers", "body", "expected"), cases(REDACTED))
async def test_redaction_comes_before_writing(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, headers: dict[str, str],
    body: dict[str, Any], expected: dict[str, Any],
) -> None:  # fmt: skip
    out = tmp_path / "trace.jsonl"
    caplog.set_level(logging.DEBUG)
    patterns = Redactor([r"[\w.]+@[\w.]+", r"\bw1\b"])
    async with proxied(server.url, out, redactor=patterns) as proxy, aiohttp.ClientSession() as session:
        full = {"model": "m", "max_tokens": 3, **body}
        async with session.post(f"{proxy.url}/v1/{path}", json=full, headers=headers) as response:
            assert b"w0 w1 w2" in await response.read(), "the client gets what the server said"
    assert server.seen[0].body == full, "the server gets what the client said"
    written = json.loads(out.read_text().splitlines()[1])
    assert {key: written.get(key) for key in expected} == expected
    for place in (out.read_text(), caplog.text):
        assert SECRET not in place


async def test_anonymous_recording_holds_hashes_only(server: Any, tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    common = "In the harbour of the old town the boats wait for the evening tide. " * 4
    anonymizer = Anonymizer(b"k" * 32)
    async with proxied(server.url, out, anonymizer=anonymizer) as proxy, client(proxy.url) as user:
        for text in (common + "Why?", common + "When does it turn?", "Something else entirely, and as long as that."):
            await chat(user, text)
            await user.completions.create(model="m", prompt=text, max_tokens=3, user="ada")
    trace = read_lines(out)
    assert trace.header.hash_block_tokens == 16
    assert trace.header.provenance == {
        "source": "tune record", "anonymized": {"hashes": "HMAC-SHA256, chained", "chars_per_token": 4.0}
    }  # fmt: skip
    first, _, second, _, third, _ = trace.lines
    assert len({str(line.hash_ids) for line in (first, second, third)}) == 3
    assert len({line.tenant for line in trace.lines}) == 2 and "ada" not in out.read_text()
    for word in ("harbour", "tide", "else", "w0", "127.0.0.1"):
        assert word not in out.read_text()
    assert len(load_trace(out).requests) == 6 and [line.output_tokens for line in trace.lines] == [4, 3] * 3


BAD_OPTIONS = [
    # (the case, options, what the line says)
    ("no regular expression", ["--redact", "(["], "redact ([: no regular expression"),
    ("a pattern that matches nothing", ["--redact", "x*"], "redact x*: matches nothing at all"),
    ("no key file", ["--anonymize-key-file", "/nowhere/key"], "/nowhere/key: cannot be read: No such file"),
    ("an empty key file", ["--anonymize-key-file", "/dev/null"], "/dev/null: no key; expected a secret"),
]


@pytest.mark.parametrize(("options", "message"), cases(BAD_OPTIONS))
def test_bad_options_are_one_line_and_leave_no_file(options: list[str], message: str, tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    result = CliRunner().invoke(app, ["record", "--upstream", "http://127.0.0.1:1", "--out", str(out), *options])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"tune: {message}") and result.stderr.count("\n") == 1
    assert not out.exists()
