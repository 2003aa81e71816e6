"""The step loop over a socket pair, and what its death means to the API process's side."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import fake_engine
import msgspec
import pytest
from fake_engine import CRASH, OUT_OF_MEMORY, REFUSE, STALL, FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.core import describe_death, serve
from engine.core_client import CoreClient, EngineDied, RequestRejected
from engine.framing import Connection, FrameSplitter, pack
from engine.messages import Abort, Add, FromEngine, Outputs, Reconfigure, Reconfigured, Rejected
from engine.sequence import SamplingParams

FAKE_CORE = (sys.executable, fake_engine.__file__)
CONFIG = EngineConfig(model="/nowhere")


@given(bodies=st.lists(st.binary(max_size=300), max_size=8), data=st.data())
def test_frames_survive_any_cutting_of_the_stream(bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    splitter = FrameSplitter()
    assert [body for part in parts for body in splitter.feed(part)] == bodies


class LoopInThread:
    """`serve` on one end of a socket pair; the test holds the other."""

    def __init__(self, engine: FakeEngine) -> None:
        self._ours, theirs = socket.socketpair()
        self._splitter = FrameSplitter()
        self._thread = threading.Thread(target=self._run, args=(engine, theirs))
        self._thread.start()

    def _run(self, engine: FakeEngine, theirs: socket.socket) -> None:
        with theirs, pytest.raises(EOFError):
            serve(engine, Connection(theirs))

    def send(self, *messages: object) -> None:
        self._ours.sendall(b"".join(map(pack, messages)))

    def messages(self) -> Iterator[FromEngine]:
        while data := self._ours.recv(1 << 16):
            for body in self._splitter.feed(data):
                yield msgspec.msgpack.decode(body, type=FromEngine)

    def close(self) -> None:
        self._ours.close()
        self._thread.join()


@pytest.fixture
def loop() -> Iterator[LoopInThread]:
    running = LoopInThread(FakeEngine(CONFIG))
    yield running
    running.close()


def test_the_loop_runs_requests_together_and_ends_with_its_socket(loop: LoopInThread) -> None:
    loop.send(Add("a", [10], SamplingParams(max_tokens=3)), Add("b", [20], SamplingParams(max_tokens=2)))
    tokens: dict[str, list[int]] = {"a": [], "b": []}
    finished: list[str] = []
    for message in loop.messages():
        assert isinstance(message, Outputs)
        for output in message.outputs:
            tokens[output.request_id] += output.tokens
            finished += [output.request_id] * (output.finish_reason is not None)
        if len(finished) == 2:
            break
    assert tokens == {"a": [11, 12, 13], "b": [21, 22]}
    assert finished == ["b", "a"]


def test_an_impossible_request_is_rejected_and_an_abort_frees_at_once(loop: LoopInThread) -> None:
    loop.send(Add("bad", [REFUSE], SamplingParams()), Add("held", [STALL], SamplingParams()))
    messages = loop.messages()
    assert next(messages) == Rejected("bad", "the prompt needs 9 pages and the pool has 8")
    assert next(message for message in messages if isinstance(message, Outputs)).stats.running == 1
    loop.send(Abort("held"), Abort("never heard of"))
    assert next(message for message in messages if isinstance(message, Outputs)).stats.running == 0


def test_reconfigure_answers_with_the_config_in_force(loop: LoopInThread) -> None:
    loop.send(Reconfigure(1, {"max_num_seqs": 3}), Reconfigure(2, {"max_num_seqs": 0}), Reconfigure(3, {}))
    answers = [message for message, _ in zip(loop.messages(), range(3), strict=False)]
    assert all(isinstance(answer, Reconfigured) and answer.config["max_num_seqs"] == 3 for answer in answers)
    assert [answer.token for answer in answers] == [1, 2, 3]
    assert answers[0].error is None
    assert "max_num_seqs" in answers[1].error


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out_of_memory"),
        (OutOfMemoryError("CUDA: tried to allocate 2 GiB"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
        (RuntimeError("shapes do not match"), "crash"),
        (IndexError("out of range"), "crash"),
    ],
)
def test_causes_of_death(error: Exception, kind: str) -> None:
    words = describe_death(error)
    assert words.kind == kind
    assert type(error).__name__ in words.detail
    assert "\n" not in words.detail


@asynccontextmanager
async def started(config: EngineConfig = CONFIG) -> AsyncIterator[CoreClient]:
    client = await CoreClient.spawn(config, FAKE_CORE)
    try:
        await asyncio.wait([client.ready, client.death], return_when=asyncio.FIRST_COMPLETED)
        yield client
    finally:
        await client.stop()


async def test_a_closed_stream_is_aborted_in_the_engine() -> None:
    async with started() as client:
        stream = client.submit("held", [STALL], SamplingParams())
        assert (await stream.next()).tokens == (0,)
        stream.close()
        assert client.num_requests == 0
        assert await client.ping(60)
        while client.stats.running:
            await asyncio.sleep(0.01)


async def test_a_rejected_request_raises() -> None:
    async with started() as client:
        with pytest.raises(RequestRejected, match="9 pages"):
            await client.submit("bad", [REFUSE], SamplingParams()).next()
        assert client.num_requests == 0


@pytest.mark.parametrize(("prompt", "exit_code", "detail"), [(CRASH, 4, "a bug"), (OUT_OF_MEMORY, 3, "memory")])
async def test_a_crash_fails_running_and_later_requests(prompt: int, exit_code: int, detail: str) -> None:
    async with started() as client:
        other = client.submit("other", [STALL], SamplingParams())
        await other.next()
        with pytest.raises(EngineDied, match=detail):
            await client.submit("fatal", [prompt], SamplingParams()).next()
        with pytest.raises(EngineDied):
            await other.next()
        assert (await client.death).exit_code == exit_code
        with pytest.raises(EngineDied):
            client.submit("later", [10], SamplingParams())
        assert not await client.ping(60)


async def test_a_killed_loop_is_reported_as_out_of_memory() -> None:
    async with started() as client:
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        death = await client.death
    assert death.exit_code == 3
    assert "SIGKILL" in death.detail


async def test_a_checkpoint_that_cannot_be_served_is_a_bad_configuration() -> None:
    async with started(CONFIG.updated({"device": "cuda"})) as client:
        assert not client.ready.done()
        death = await client.death
    assert (death.exit_code, death.detail) == (2, "device: cuda was asked for and there is none")


async def test_the_loop_gets_openmp_and_heap_settings_before_it_loads_anything(tmp_path: Path) -> None:
    script = tmp_path / "core.py"
    script.write_text(
        "import os, sys\n"
        "from engine.core import main\n"
        "def load(config):\n"
        "    names = 'OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'MALLOC_TRIM_THRESHOLD_'\n"
        "    raise ValueError(' '.join(os.environ[name] for name in names))\n"
        "sys.exit(main(load))\n"
    )
    client = await CoreClient.spawn(CONFIG.updated({"num_threads": 2}), (sys.executable, str(script)))
    death = await client.death
    await client.stop()
    assert death.detail == "2 PASSIVE 10000 536870912"


async def test_stopping_is_no_death() -> None:
    async with started() as client:
        stream = client.submit("held", [STALL], SamplingParams())
        await stream.next()
    with pytest.raises(EngineDied, match="shutting down"):
        await stream.next()
    assert not client.death.done()
