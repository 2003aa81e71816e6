"""SIGTERM as a load balancer and an orchestrator send it: what runs is finished, what comes is sent away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fake_engine import AWAIT, RELEASE, STALL, write_checkpoint
from serving import Engine, running
from test_processes import gone, run_refused, until_running

PATHS = ("/v1/completions", "/v1/chat/completions", "/score", "/reconfigure")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path)


@pytest.fixture
def engine(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with running({"model": str(checkpoint)}, *getattr(request, "param", ()), fake=True) as process:
        yield process


def stream(http: aiohttp.ClientSession, prompt: int) -> Any:
    body = {"prompt": [prompt, 10], "max_tokens": 5, "stream": True, "return_token_ids": True}
    return http.post("/v1/completions", json=body)


def tell_group(engine: Engine, number: signal.Signals) -> int:
    """The signal to both processes, as the kill of a process group does. Returns the step loop's id."""
    (child,) = engine.children()
    os.kill(child, number)
    engine.process.send_signal(number)
    return child


async def until_draining(http: aiohttp.ClientSession) -> None:
    while True:
        async with http.get("/health") as health:
            if health.status == 503:
                assert (await health.json())["error"]["code"] == "server_draining"
                return


async def test_running_requests_are_finished_and_new_ones_refused(engine: Engine, checkpoint: Path) -> None:
    async with aiohttp.ClientSession(engine.url) as http, stream(http, AWAIT) as streamed:
        first = await streamed.content.readline()
        waits = {"prompt": [AWAIT, 10], "max_tokens": 5, "return_token_ids": True}
        whole = asyncio.create_task(http.post("/v1/completions", json=waits))
        await until_running(http, 2)
        child = tell_group(engine, signal.SIGTERM)
        await until_draining(http)
        for path in PATHS:
            async with http.post(path, json={"prompt": [10]}) as refused:
                error = (await refused.json())["error"]
            assert (refused.status, error["type"], error["code"]) == (503, "server_error", "server_draining"), path
            assert 1 <= int(refused.headers["Retry-After"]) <= 25
        async with http.get("/metrics") as metrics:
            assert metrics.status == 200
        assert engine.process.poll() is None
        (checkpoint / RELEASE).touch()
        rest = first + await streamed.content.read()
        async with await whole as answer:
            assert (await answer.json())["choices"][0]["token_ids"] == [11, 12, 13, 14, 15]
    assert rest.endswith(b"data: [DONE]\n\n")
    assert [f'"token_ids":[{token}]'.encode() in rest for token in range(11, 16)] == [True] * 5
    assert await asyncio.to_thread(engine.process.wait) == 0
    assert gone(child)
    log = engine.stderr.read_text()
    assert "draining: 2 requests" in log
    assert "Traceback" not in log


FORCED = {
    "a second SIGTERM": ((), [signal.SIGTERM, signal.SIGTERM]),
    "SIGINT while draining": ((), [signal.SIGTERM, signal.SIGINT]),
    "SIGINT": ((), [signal.SIGINT]),
    "the time limit": (("--drain-timeout", "0.2"), [signal.SIGTERM]),
    "no time at all": (("--drain-timeout", "0"), [signal.SIGTERM]),
}


@pytest.mark.parametrize(("engine", "signals"), FORCED.values(), ids=FORCED, indirect=["engine"])
async def test_what_is_not_finished_ends_with_an_error(engine: Engine, signals: list[signal.Signals]) -> None:
    async with aiohttp.ClientSession(engine.url) as http, stream(http, STALL) as held:
        await held.content.readline()
        child = tell_group(engine, signals[0])
        if len(signals) > 1:
            await until_draining(http)
            tell_group(engine, signals[1])
        rest = await held.content.read()
    assert b"the engine is shutting down" in rest
    assert await asyncio.to_thread(engine.process.wait) == 0
    assert gone(child)
    log = engine.stderr.read_text()
    assert "stopping with 1 requests unfinished" in log
    assert "Traceback" not in log


async def test_an_idle_server_ends_at_once(engine: Engine) -> None:
    async with aiohttp.ClientSession(engine.url) as http:
        for path in ("/v1/completions", "/score"):  # an error and an abort leave nothing behind that is waited for
            async with http.post(path, json={"prompt": 3}) as refused:
                assert refused.status == 400
        held = await stream(http, STALL)
        held.close()
    engine.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(engine.process.wait) == 0


@pytest.mark.parametrize("text", ["-1", "nan", "soon"])
def test_a_drain_timeout_that_is_no_time(checkpoint: Path, text: str) -> None:
    config = checkpoint / "engine.yaml"
    config.write_text(f"model: {checkpoint}\n")
    line = run_refused(config, f"--drain-timeout={text}")
    assert f"--drain-timeout: expected seconds, at least 0, given '{text}'" in line
