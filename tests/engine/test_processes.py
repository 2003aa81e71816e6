"""The API process and its step loop as processes: starting, refusing to, disconnects, crashes and signals."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from fake_engine import CRASH, NEVER_LOADS_SEED, OUT_OF_MEMORY, REFUSE, STALL, write_checkpoint
from serving import Engine, command, running

HELD = [STALL, 10]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def engine(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with running({"model": str(checkpoint)}, *getattr(request, "param", ()), fake=True) as process:
        yield process


@pytest.fixture
async def http(engine: Engine) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(engine.url) as session:
        yield session


async def num_running(http: aiohttp.ClientSession) -> float:
    async with http.get("/metrics") as response:
        match = re.search(r"^servetune:num_requests_running (\S+)$", await response.text(), re.MULTILINE)
    assert match is not None
    return float(match[1])


async def until_running(http: aiohttp.ClientSession, count: int) -> None:
    """Ends with pytest's timeout if it never happens."""
    while await num_running(http) != count:
        await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """No process, or one that only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pid: int) -> None:
    while not gone(pid):
        time.sleep(0.01)


async def post(http: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with http.post(path, json=body) as response:
        return response.status, await response.json()


async def test_a_disconnected_stream_is_aborted(engine: Engine, http: aiohttp.ClientSession) -> None:
    async with engine.client() as client:
        stream = await client.completions.create(model="", prompt=HELD, stream=True, extra_body={"model": None})
        await anext(aiter(stream))
        await until_running(http, 1)
        await stream.close()
    await until_running(http, 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", {"prompt": HELD}), ("/score", {"items": [{"prompt": HELD, "target": [5, 6]}] * 3})],
)
async def test_a_disconnected_request_is_aborted(http: aiohttp.ClientSession, path: str, body: Any) -> None:
    request = asyncio.create_task(post(http, path, body))
    await until_running(http, 3 if path == "/score" else 1)
    request.cancel()
    await until_running(http, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_the_engine_rejects_is_a_bad_request(http: aiohttp.ClientSession, stream: bool) -> None:
    status, answer = await post(http, "/v1/completions", {"prompt": [REFUSE], "stream": stream})
    assert (status, answer["error"]["message"]) == (400, "the prompt needs 9 pages and the pool has 8")


async def test_reconfigure_waits_for_nobody(http: aiohttp.ClientSession) -> None:
    held = asyncio.create_task(post(http, "/v1/completions", {"prompt": HELD}))
    await until_running(http, 1)
    status, answer = await post(http, "/reconfigure", {"changes": {"max_num_seqs": 2}})
    assert (status, answer["error"]["message"][:24]) == (409, "1 requests are in flight")
    held.cancel()
    await until_running(http, 0)
    assert (await post(http, "/reconfigure", {"changes": {"max_num_seqs": 2}}))[0] == 200


@pytest.mark.parametrize("engine", [("--long-notice",)], indirect=True)
async def test_a_killed_step_loop_fails_requests_and_ends_the_server(
    engine: Engine, http: aiohttp.ClientSession
) -> None:
    async with engine.client() as client, http.get("/health") as health:
        assert health.status == 200
        stream = await client.completions.create(model="", prompt=HELD, stream=True, extra_body={"model": None})
        chunks = aiter(stream)
        await anext(chunks)
        whole = asyncio.create_task(post(http, "/v1/completions", {"prompt": HELD}))
        await until_running(http, 2)
        os.kill(engine.children()[0], signal.SIGKILL)
        with pytest.raises(openai.APIError, match="SIGKILL"):
            await anext(chunks)
        assert (await whole)[0] == 500
    async with http.get("/health") as health:
        assert (health.status, (await health.json())["error"]["code"]) == (503, "engine_unavailable")
    assert (await post(http, "/v1/completions", {"prompt": [10]}))[0] == 503
    engine.process.terminate()
    assert await asyncio.to_thread(engine.process.wait) == 3
    assert [line for line in engine.stderr.read_text().splitlines() if "died" in line and "SIGKILL" in line]


@pytest.mark.parametrize(("prompt", "exit_code"), [(CRASH, 4), (OUT_OF_MEMORY, 3)])
async def test_the_exit_status_tells_a_crash_from_memory(
    engine: Engine, http: aiohttp.ClientSession, prompt: int, exit_code: int
) -> None:
    status, answer = await post(http, "/v1/completions", {"prompt": [prompt]})
    assert (status, answer["error"]["type"], answer["error"]["code"]) == (500, "server_error", "engine_died")
    assert await asyncio.to_thread(engine.process.wait) == exit_code


async def test_the_end_of_sequence_token_is_counted_but_no_text(
    engine: Engine, http: aiohttp.ClientSession, checkpoint: Path
) -> None:
    """The fake engine counts up: 120, 121, 122; the checkpoint is changed to end at 122, which is a visible token."""
    body = {"prompt": [119], "max_tokens": 9, "return_token_ids": True}
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [122, 1]}')
    try:
        with running({"model": str(checkpoint)}, fake=True) as other:
            _, ended = await post(http, f"{other.url}/v1/completions", body)
            _, ignoring = await post(http, f"{other.url}/v1/completions", {**body, "ignore_eos": True})
    finally:
        (checkpoint / "generation_config.json").unlink()
    _, without = await post(http, "/v1/completions", {**body, "max_tokens": 2})
    assert (ended["choices"][0]["token_ids"], ended["choices"][0]["finish_reason"]) == ([120, 121, 122], "stop")
    assert ended["choices"][0]["text"] == without["choices"][0]["text"]
    assert ended["usage"]["completion_tokens"] == 3
    assert ignoring["choices"][0]["token_ids"] == list(range(120, 129))


def test_a_signal_while_loading_ends_both_processes(checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "engine.yaml"
    config.write_text(f"model: {checkpoint}\nseed: {NEVER_LOADS_SEED}\n")
    with subprocess.Popen(command(config, fake=True), stdout=subprocess.PIPE, text=True) as process:
        engine = Engine("", process, tmp_path)
        while not engine.children():
            time.sleep(0.01)
        (child,) = engine.children()
        process.terminate()
        assert process.communicate()[0] == ""
    assert process.returncode == 0
    assert gone(child)


async def test_a_killed_server_leaves_no_step_loop(engine: Engine) -> None:
    (child,) = engine.children()
    engine.process.kill()
    await asyncio.to_thread(wait_until_gone, child)


def test_a_step_loop_that_is_stopped_ends_with_its_killed_server(engine: Engine) -> None:
    """It never sees the end of its socket, so the kernel has to end it."""
    (child,) = engine.children()
    os.kill(child, signal.SIGSTOP)
    engine.process.kill()
    wait_until_gone(child)


def run_refused(config: Path, *options: str, fake: bool = True) -> str:
    """The one line on stderr of a start that ends with status 2."""
    start = command(config, *options, fake=fake)
    ended = subprocess.run(start, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    return line


def test_a_bad_configuration_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "engine.yaml"
    assert "cannot be read" in run_refused(config)
    config.write_text("model: .\nmax_num_seq: 3\n")
    assert "max_num_seq: unknown setting; did you mean max_num_seqs?" in run_refused(config)
    config.write_text("model: nowhere\n")
    assert "tokenizer.json: no such file" in run_refused(config)
    config.write_text(f"model: {checkpoint}\ndevice: cuda\n")
    assert "device: cuda was asked for and there is none" in run_refused(config)


def test_a_checkpoint_without_weights_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "engine.yaml"
    config.write_text(f"model: {checkpoint}\n")
    assert str(checkpoint) in run_refused(config, fake=False)


def test_addresses_that_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "engine.yaml"
    config.write_text(f"model: {checkpoint}\n")
    assert "--allow-remote" in run_refused(config, "--host", "0.0.0.0")
    assert "--host 300.1.2.3" in run_refused(config, "--host", "300.1.2.3")
    assert "--port 70000" in run_refused(config, "--port", "70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Address already in use" in run_refused(config, "--port", str(taken.getsockname()[1]))


def test_the_api_process_does_not_load_torch() -> None:
    code = "import sys, engine.__main__, engine.core; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
