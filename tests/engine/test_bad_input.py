"""What no client should send, sent to a live engine while others stream: the right error, and nobody else notices."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from serving import Engine, command, running
from test_weights import CASES as BAD_CHECKPOINTS
from tiny_models import PROMPT

C, CHAT, SCORE, RECONFIGURE = "/v1/completions", "/v1/chat/completions", "/score", "/reconfigure"
BIG = 10**26


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def prompted(**fields: Any) -> bytes:
    return body(prompt=[5], **fields)


def changes(**fields: Any) -> bytes:
    return body(changes=fields)


Row = tuple[str, bytes, int, str]
ROWS: dict[str, Row] = {
    "no body": (C, b"", 400, "the body is not JSON"),
    "half a body": (C, b'{"prompt": [5], "max_to', 400, "the body is not JSON"),
    "bytes that are no text": (C, b"\xff\xfe{}", 400, "the body is not JSON"),
    "a list": (C, b"[1]", 400, "the body must be a JSON object"),
    "deep nesting": (C, b'{"prompt":' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, "nested too deeply"),
    "a lone surrogate": (C, b'{"prompt": "\\ud800"}', 400, "the body is not JSON"),
    "not a number": (C, b'{"prompt": [5], "temperature": NaN}', 400, "the body is not JSON"),
    "a number beyond float": (C, b'{"prompt": [5], "temperature": 1e999}', 400, "out of range"),
    "a number of 5,000 digits": (C, b'{"prompt": [5], "seed": ' + b"9" * 5_000 + b"}", 400, "out of range"),
    "a body of 33 MB": (C, prompted(user="x" * 33 * 2**20), 413, "Request Entity Too Large"),
    "longer than the model": (C, body(prompt=[5] * 600), 400, "exceed max_model_len = 512"),
    "an answer longer than the model": (C, prompted(max_tokens=BIG), 400, "exceed max_model_len = 512"),
    "a score longer than the model": (SCORE, body(items=[{"prompt": [5], "target": [6] * 600}]), 400, "max_model_len"),
    "negative max_tokens": (C, prompted(max_tokens=-5), 400, "max_tokens"),
    "no max_tokens": (C, prompted(max_tokens=0), 400, "max_tokens"),
    "max_tokens as text": (C, prompted(max_tokens="5"), 400, "max_tokens"),
    "an unknown field": (C, prompted(temprature=0), 400, "temprature: unknown field; did you mean temperature?"),
    "no prompt": (C, b"{}", 400, "prompt: Field required"),
    "an empty prompt": (C, body(prompt=[]), 400, "prompt: no tokens"),
    "a prompt that is a number": (C, body(prompt=3), 400, "prompt: expected one text"),
    "a token beyond the vocabulary": (C, body(prompt=[384]), 400, "prompt: token ids must lie in [0, 384)"),
    "a token of 26 digits": (C, body(prompt=[BIG]), 400, "prompt: token ids must lie in [0, 384)"),
    "a temperature below 0": (C, prompted(temperature=-1), 400, "temperature"),
    "a bias to what is no token": (C, prompted(logit_bias={"²": 1}), 400, "logit_bias"),
    "two answers": (C, prompted(n=2), 400, "n: "),
    "a stream that is a word": (C, prompted(stream="yes"), 400, "stream"),
    "no messages": (CHAT, body(messages=[]), 400, "messages"),
    "messages as text": (CHAT, body(messages="hello"), 400, "messages"),
    "a message without content": (CHAT, body(messages=[{"role": "user"}]), 400, "messages.0.content"),
    "no changes": (RECONFIGURE, b"{}", 400, "changes: Field required"),
    "an unknown knob": (RECONFIGURE, changes(max_num_seq=1), 400, "did you mean max_num_seqs?"),
    "a knob of a wrong type": (RECONFIGURE, changes(block_size="x"), 400, "block_size"),
    "a knob out of range": (RECONFIGURE, changes(block_size=0), 400, "block_size"),
    "a knob of 26 digits": (RECONFIGURE, changes(kv_cache_memory_bytes=BIG), 400, "expected less than 2**63"),
    "more seats than the budget": (RECONFIGURE, changes(max_num_seqs=900), 400, "is below max_num_seqs 900"),
    "heavy hitters without a window": (RECONFIGURE, changes(kv_heavy_tokens=64), 400, "needs kv_window"),
    "a heavy page that is no page": (RECONFIGURE, changes(kv_window=64, kv_heavy_tokens=8), 400, "less than a page"),
    "guesses without a draft": (RECONFIGURE, changes(num_speculative_tokens=2), 400, "needs draft_model"),
    "another model": (RECONFIGURE, changes(model="/elsewhere"), 409, "a restart is needed to change model"),
    "an unknown path": ("/v1/embeddings", b"{}", 404, "Not Found"),
    "an unfinished path": ("/v1/%FF%ED%A0%80", b"{}", 404, "Not Found"),
    "a read that is a write": ("/v1/models", b"{}", 405, "Method Not Allowed"),
}


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator[Engine]:
    with running({"model": str(tiny_llama), "kv_cache_memory_bytes": 4_000_000}) as process:
        yield process


async def stream(http: aiohttp.ClientSession) -> list[int]:
    fields = {"prompt": PROMPT, "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    async with http.post(C, json={**fields, "stream": True, "return_token_ids": True}) as response:
        lines = [line[6:] async for line in response.content if line.startswith(b"data: {")]
    return [token for line in lines for token in json.loads(line)["choices"][0]["token_ids"]]


async def refused(http: aiohttp.ClientSession, path: str, data: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    async with http.post(
        path, data=io.BytesIO(data), headers={"Content-Type": "application/json", **headers}
    ) as response:
        answer = json.loads(await response.read())
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert "\n" not in answer["error"]["message"]
    return response.status, answer["error"]


async def test_nobody_notices_what_others_get_wrong(engine: Engine) -> None:
    async with aiohttp.ClientSession(engine.url) as http:
        alone = await stream(http)
        assert len(alone) == 200
        streams = [asyncio.create_task(stream(http))]
        for case, (path, data, status, message) in ROWS.items():
            if streams[-1].done():
                streams.append(asyncio.create_task(stream(http)))
                await asyncio.sleep(0)
            got, error = await refused(http, path, data)
            assert (got, message in error["message"]) == (status, True), f"{case}: {got} {error}"
        for tokens in await asyncio.gather(*streams):
            assert tokens == alone
    assert "Traceback" not in engine.stderr.read_text()


async def test_a_change_while_others_stream(engine: Engine) -> None:
    fields = {"prompt": PROMPT, "max_tokens": 400, "temperature": 0, "ignore_eos": True, "stream": True}
    async with aiohttp.ClientSession(engine.url) as http, http.post(C, json=fields) as streaming:
        assert (await streaming.content.readline()).startswith(b"data: {")
        status, error = await refused(http, RECONFIGURE, changes(block_size=8))
        assert (status, "in flight" in error["message"]) == (409, True)
        assert (await streaming.content.read()).endswith(b"data: [DONE]\n\n")


async def test_more_memory_than_there_is(engine: Engine) -> None:
    async with aiohttp.ClientSession(engine.url) as http:
        before = await stream(http)
        status, error = await refused(http, RECONFIGURE, changes(kv_cache_memory_bytes=10**15))
        assert (status, "the pages need 1000000000000000 bytes, there are" in error["message"]) == (409, True)
        assert await stream(http) == before


@pytest.mark.parametrize(
    "settings", [{"block_size": 24, "prefill_chunk_size": 32}, {"kv_window": 4, "kv_sink_tokens": 1, "block_size": 16}]
)
async def test_pages_and_chunks_need_not_fit_each_other(engine: Engine, settings: dict[str, int]) -> None:
    """Others refuse such pairs. Here results depend on neither, so they are served."""
    async with aiohttp.ClientSession(engine.url) as http:
        restored = {"block_size": 16, "prefill_chunk_size": None, "kv_window": None, "kv_sink_tokens": 4}
        plain = {**restored, **settings, "block_size": 1, "prefill_chunk_size": 1}
        answers = []
        for wanted in (settings, plain, restored):
            async with http.post(RECONFIGURE, json={"changes": wanted}) as response:
                assert response.status == 200
            answers.append(await stream(http))
    assert answers[0] == answers[1]


async def test_a_body_that_cannot_be_unpacked(engine: Engine) -> None:
    async with aiohttp.ClientSession(engine.url) as http:
        status, error = await refused(http, C, b"no gzip", **{"Content-Encoding": "gzip"})
        assert (status, "see Content-Encoding" in error["message"]) == (400, True)
        bomb = gzip.compress(bytes(64 * 2**20))
        assert (await refused(http, C, bomb, **{"Content-Encoding": "gzip"}))[0] == 413


async def test_a_tenant_that_is_no_text(engine: Engine) -> None:
    host, port = engine.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = prompted(max_tokens=1)
    head = f"POST {C} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(head.encode() + b"X-Tenant: \xff\xfe\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    assert b" 200 OK" in await reader.readline()
    writer.close()
    async with aiohttp.ClientSession(engine.url) as http, http.get("/metrics") as response:
        assert 'tenant_generation_tokens_total{tenant="??"} 1.0' in await response.text()


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    **{name: BAD_CHECKPOINTS[name] for name in ("no safetensors", "a tensor of a wrong dtype", "another architecture")},
    "a config.json that is no JSON": (lambda d: (d / "config.json").write_text("{"), "config.json: not JSON: "),
}
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "more memory than there is": ({"kv_cache_memory_bytes": 10**15}, "the pages need 1000000000000000 bytes"),
    "a number of 26 digits": ({"kv_cache_memory_bytes": BIG}, "kv_cache_memory_bytes: expected less than 2**63"),
    "a model that is not there": ({"model": "/nowhere"}, "/nowhere"),
}


@pytest.mark.parametrize("case", [*CHECKPOINTS, *SETTINGS])
def test_a_start_that_cannot_be_is_one_line(case: str, tiny_llama: Path, tmp_path: Path) -> None:
    model, config = tmp_path / "model", tmp_path / "engine.yaml"
    shutil.copytree(tiny_llama, model)
    settings, message = SETTINGS.get(case, ({}, ""))
    if case in CHECKPOINTS:
        damage, message = CHECKPOINTS[case]
        damage(model)
    config.write_text(yaml.safe_dump({"model": str(model), **settings}))
    ended = subprocess.run(command(config, fake=False), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert message in line
