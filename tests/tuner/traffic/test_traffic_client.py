"""One streamed completion: what is sent, which tokens are stamped, how each failure is named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from tests.fakes import PATIENCE
from tuner.traffic.client import complete, open_session, send
from tuner.traffic.trace import Request, RequestRecord


def request(**changes: Any) -> Request:
    values: dict[str, Any] = {
        "id": "r1", "arrival": 0.0, "tenant": "acme", "slo_class": "chat", "prompt": "hello", "max_tokens": 6,
    }  # fmt: skip
    return Request(**{**values, **changes})


async def sent(url: str, **changes: Any) -> RequestRecord:
    options = {key: changes.pop(key) for key in ("token_ids", "timeout") if key in changes}
    return await send(url, "mini", request(**changes), asyncio.get_running_loop().time(), **options)


async def test_every_token_is_stamped_in_order(server: Any, script: Any) -> None:
    server.script = lambda body: script(first_delay=0.03, token_delay=0.01)
    record = await sent(server.url)
    assert record.error is None
    assert record.finish_reason == "length"
    assert (record.prompt_tokens, record.output_tokens) == (5, 6)
    assert len(record.token_times) == 6
    assert sorted(record.token_times) == list(record.token_times)
    assert record.sent is not None
    # Closed form of the fake: token i leaves 0.03 + 0.01 i seconds after the request came, never earlier.
    for i, time in enumerate(record.token_times):
        assert time - record.sent >= 0.03 + 0.01 * i - 0.002


BODIES = [
    ("recorded length is forced", {"output_tokens": 3}, {"max_tokens": 3, "ignore_eos": True}),
    ("an empty recorded answer still takes one token", {"output_tokens": 0}, {"max_tokens": 1, "ignore_eos": True}),
    ("no recorded length", {}, {"max_tokens": 6, "ignore_eos": None}),
    ("token ids as prompt", {"prompt": (17, 18)}, {"prompt": [17, 18], "messages": None}),
    ("greedy by default", {}, {"temperature": 0.0, "top_k": None, "seed": None}),
    (
        "sampling",
        {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3},
        {"temperature": 0.7, "top_k": 5, "seed": 3},
    ),
    ("usage is asked for", {}, {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": None}),
    ("token ids are asked for", {"token_ids": True}, {"return_token_ids": True}),
    (
        "chat",
        {"endpoint": "chat", "prompt": ({"role": "user", "content": "hi"},)},
        {"messages": [{"role": "user", "content": "hi"}], "prompt": None},
    ),
]


@pytest.mark.parametrize(("changes", "fields"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
async def test_body(server: Any, changes: dict[str, Any], fields: dict[str, Any]) -> None:
    record = await sent(server.url, **changes)
    assert record.error is None
    body = server.seen[0].body
    assert {key: body.get(key) for key in fields} == fields
    assert body["model"] == "mini"
    assert server.seen[0].path == ("/v1/chat/completions" if changes.get("endpoint") == "chat" else "/v1/completions")
    assert server.seen[0].headers["X-Tenant"] == "acme"
    assert server.seen[0].headers["X-SLO-Class"] == "chat"


COUNTS = [
    # (the case, script, options, stamps expected, output tokens expected)
    ("chunks tell their token ids", {"tokens_per_chunk": 4}, {"token_ids": True}, 6, 6),
    ("merged chunks without ids: usage is right", {"tokens_per_chunk": 4}, {}, 2, 6),
    ("merged chunks, no usage: chunks are all we know", {"tokens_per_chunk": 4, "usage": False}, {}, 2, 2),
    ("chunks with empty text are no tokens", {"empty_chunks": True}, {}, 6, 6),
    ("chunks with empty text, no usage", {"empty_chunks": True, "usage": False}, {}, 6, 6),
]


@pytest.mark.parametrize(("how", "options", "stamps", "tokens"), [r[1:] for r in COUNTS], ids=[r[0] for r in COUNTS])
@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
async def test_counts(
    server: Any, script: Any, how: dict[str, Any], options: dict[str, Any], stamps: int, tokens: int, chat: bool
) -> None:
    server.script = lambda body: script(**how)
    if chat:
        options = {**options, "endpoint": "chat", "prompt": ({"role": "user", "content": "hi"},)}
    record = await sent(server.url, output_tokens=6, **options)
    assert record.error is None
    assert (len(record.token_times), record.output_tokens, record.expected_tokens) == (stamps, tokens, 6)


async def test_tokens_of_one_chunk_share_a_time(server: Any, script: Any) -> None:
    server.script = lambda body: script(tokens_per_chunk=3, token_delay=0.02)
    times = (await sent(server.url, token_ids=True)).token_times
    assert times[0] == times[1] == times[2] < times[3] == times[4] == times[5]


async def test_more_chunks_than_tokens_keep_first_and_last_stamp(server: Any, script: Any) -> None:
    event = b'data: {"choices": [{"text": "a", "finish_reason": %s}]}\n\n'
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}\n\n'
    server.script = lambda body: script(raw=event % b"null" + event % b"null" + event % b'"stop"' + usage)
    record = await sent(server.url)
    assert (len(record.token_times), record.output_tokens, record.finish_reason) == (2, 2, "stop")


DELTAS = [
    # (the case, keys of the first delta; the second is the answer, 0.05 s later)
    ("reasoning as vLLM calls it", {"reasoning": "hm"}),
    ("reasoning as vLLM called it", {"reasoning_content": "hm"}),
    ("both names", {"reasoning": "hm", "reasoning_content": "hm"}),
]


@pytest.mark.parametrize("delta", [row[1] for row in DELTAS], ids=[row[0] for row in DELTAS])
async def test_the_first_token_may_be_one_of_reasoning(server: Any, script: Any, delta: dict[str, str]) -> None:
    """A model that thinks for a minute has not made its user wait for a minute."""
    server.script = lambda body: script(token_delay=0.05, first_delta=delta)
    record = await sent(server.url, endpoint="chat", prompt=({"role": "user", "content": "hi"},), max_tokens=2)
    assert (record.error, len(record.token_times), record.output_tokens) == (None, 2, 2)
    assert record.token_times[1] - record.token_times[0] >= 0.04


FAILURES = [
    ("server error", {"status": 500}, {}, "http_5xx", 0),
    ("overloaded", {"status": 503}, {}, "http_5xx", 0),
    ("refused by the API", {"status": 429}, {}, "http_4xx", 0),
    ("stream cut after two tokens", {"cut_after": 2}, {}, "truncated", 2),
    ("stream ends without a finish", {"finish": False, "usage": False}, {}, "truncated", 6),
    ("an error inside the stream", {"raw": b'data: {"error": {"message": "oom"}}\n\n'}, {}, "protocol", 0),
    ("no JSON in the stream", {"raw": b"data: <html>\n\n"}, {}, "protocol", 0),
    ("an empty stream", {"raw": b""}, {}, "truncated", 0),
]


@pytest.mark.parametrize(("how", "options", "error", "tokens"), [r[1:] for r in FAILURES], ids=[r[0] for r in FAILURES])
async def test_failures_are_typed(
    server: Any, script: Any, how: dict[str, Any], options: dict[str, Any], error: str, tokens: int
) -> None:
    server.script = lambda body: script(**how)
    record = await sent(server.url, **options)
    assert record.error == error
    assert len(record.token_times) == tokens
    assert record.sent is not None


async def test_an_answer_slower_than_the_limit_keeps_what_came(
    server: Any, script: Any, leap: Callable[[float], None]
) -> None:
    async def late(number: int) -> None:
        if number == 1:
            leap(PATIENCE)
            await asyncio.Event().wait()

    server.script = lambda body: script(between=late)
    record = await sent(server.url, timeout=PATIENCE)
    assert (record.error, len(record.token_times)) == ("timeout", 1)


async def test_connection_refused(closed_port: str) -> None:
    assert (await sent(closed_port)).error == "refused"


async def test_reset_before_an_answer() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.transport.abort()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with listener:
        record = await sent(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    assert record.error == "connection"


async def test_api_key_is_sent_and_only_from_our_variable(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-this-server")
    await sent(server.url)
    monkeypatch.setenv("SERVETUNE_API_KEY", "k-1")
    await sent(server.url)
    assert [seen.headers.get("Authorization") for seen in server.seen] == [None, "Bearer k-1"]


async def test_complete_returns_greedy_text(server: Any) -> None:
    async with open_session() as session:
        assert await complete(session, server.url, "mini", "hello", 3) == "w0 w1 w2 "
    assert server.seen[0].body == {"model": "mini", "prompt": "hello", "max_tokens": 3, "temperature": 0.0}


@pytest.mark.parametrize("how", [{"status": 500}, {"raw": b"{}"}, {"raw": b"no"}], ids=["500", "no choices", "no JSON"])
async def test_complete_raises_client_errors(server: Any, script: Any, how: dict[str, Any]) -> None:
    server.script = lambda body: script(**how)
    async with open_session() as session:
        with pytest.raises(aiohttp.ClientError):
            await complete(session, server.url, "mini", "hello", 3)
