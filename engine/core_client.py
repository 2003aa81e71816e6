"""The API process's side of the step loop: start it, submit and abort requests, notice its death."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import msgspec

from engine.config import EngineConfig
from engine.framing import FrameSplitter, pack
from engine.messages import Abort, Add, Died, FromEngine, Outputs, Ready, Reconfigure, Reconfigured, Rejected
from engine.sequence import EngineStats, SamplingParams, SequenceOutput
from engine.waiting_room import WaitingRoom

CORE_COMMAND = (sys.executable, "-m", "engine.core_process")
LOGGED_COMMAND = (sys.executable, "-m", "engine.logged_process")
EXIT_CODES = {"config": 2, "out_of_memory": 3, "crash": 4}
STOP_GRACE_S = 1.0
SPIN_COUNT = "10000"
KEPT_HEAP_BYTES = str(2**29)

_decode = msgspec.msgpack.Decoder(FromEngine).decode


class RequestRejected(ValueError):
    """The engine can never run this request; the message is one line for the user."""


class EngineDied(RuntimeError):
    """The step loop is gone; every request it ran is lost."""


@dataclass(frozen=True)
class Death:
    """Why the step loop ended. exit_code: what the API process should exit with."""

    exit_code: int
    detail: str


class OutputStream:
    """The outputs of one request, in order, until one carries a finish_reason. Close it in a `finally`."""

    def __init__(self, client: CoreClient, request_id: str) -> None:
        self.request_id = request_id
        self._client = client
        self._queue: asyncio.Queue[SequenceOutput | Exception] = asyncio.Queue()

    def put(self, item: SequenceOutput | Exception) -> None:
        self._queue.put_nowait(item)

    async def next(self) -> SequenceOutput:
        """Raises RequestRejected or EngineDied."""
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Abort the request in the engine unless it has finished."""
        self._client.release(self.request_id)


class CoreClient(asyncio.Protocol):
    """One step-loop process. `ready` and `death` are futures; `config` and `stats` are as last reported."""

    def __init__(self, config: EngineConfig) -> None:
        loop = asyncio.get_running_loop()
        self.config = config
        self.stats = EngineStats()
        self.waiting_room = WaitingRoom()
        self.ready: asyncio.Future[Ready] = loop.create_future()
        self.death: asyncio.Future[Death] = loop.create_future()
        self._process: asyncio.subprocess.Process | None = None
        self._transport: asyncio.Transport | None = None
        self._splitter = FrameSplitter()
        self._streams: dict[str, OutputStream] = {}
        self._reconfigurations: dict[int, asyncio.Future[Reconfigured]] = {}
        self._tokens = itertools.count()
        self._last_words: Died | None = None
        self._burial: asyncio.Task[None] | None = None
        self._stopping = False

    @classmethod
    async def spawn(cls, config: EngineConfig, command: Sequence[str] = CORE_COMMAND) -> CoreClient:
        """Start the process; await `ready` for the model. Raises OSError when it cannot be started."""
        client = cls(config)
        ours, theirs = socket.socketpair()
        with theirs:
            client._process = await asyncio.create_subprocess_exec(
                *command,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                env=_environment(config),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
            )
        await asyncio.get_running_loop().create_unix_connection(lambda: client, sock=ours)
        client._send_bytes(pack(config.model_dump()))
        return client

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def num_requests(self) -> int:
        """Requests submitted and neither finished nor aborted."""
        return len(self._streams)

    def submit(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, priority: int = 0, tenant: str = ""
    ) -> OutputStream:
        """Start a request. Raises EngineDied."""
        if self._is_lost():
            raise EngineDied(self._reason())
        frame = pack(Add(request_id, list(prompt), params, priority, tenant))
        stream = self._streams[request_id] = OutputStream(self, request_id)
        self.waiting_room.enter(request_id, len(prompt))
        self._send_bytes(frame)
        return stream

    def release(self, request_id: str) -> None:
        """Forget a request; if the engine still runs it, abort it there."""
        self.waiting_room.leave(request_id)
        if self._streams.pop(request_id, None) is not None and not self._is_lost():
            self._send_bytes(pack(Abort(request_id)))

    async def reconfigure(self, changes: Mapping[str, Any]) -> Reconfigured:
        """Apply `changes`; an outcome with an error changed nothing. Raises EngineDied."""
        if self._is_lost():
            raise EngineDied(self._reason())
        token = next(self._tokens)
        answer = asyncio.get_running_loop().create_future()
        self._reconfigurations[token] = answer
        self._send_bytes(pack(Reconfigure(token, dict(changes))))
        try:
            outcome: Reconfigured = await answer
        finally:
            self._reconfigurations.pop(token, None)
        self.config = EngineConfig.model_validate(outcome.config)
        return outcome

    async def ping(self, timeout_s: float) -> bool:
        """Whether the loop takes a message and answers within `timeout_s` seconds, which holds at least one step."""
        try:
            await asyncio.wait_for(self.reconfigure({}), timeout_s)
        except (EngineDied, TimeoutError):
            return False
        return True

    async def stop(self) -> None:
        """Close the connection, which ends the loop; kill it if a step outlasts the grace time. This is no `death`."""
        self._stopping = True
        if self._transport is not None:
            self._transport.close()
        if self._process is not None:
            # While it loads it does not read, and there is nothing to finish.
            await _end(self._process, STOP_GRACE_S if self.ready.done() else 0.0)
        if self._burial is not None:
            await self._burial

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for body in self._splitter.feed(data):
            self._dispatch(_decode(body))

    def connection_lost(self, exc: Exception | None) -> None:
        self._burial = asyncio.get_running_loop().create_task(self._bury())

    def _dispatch(self, message: FromEngine) -> None:
        match message:
            case Outputs(outputs, stats, begun):
                self.stats = stats
                for request_id in begun:
                    self.waiting_room.begin(request_id)
                for output in outputs:
                    self._deliver(output)
            case Rejected(request_id, reason):
                self.waiting_room.leave(request_id)
                if stream := self._streams.pop(request_id, None):
                    stream.put(RequestRejected(reason))
            case Reconfigured():
                answer = self._reconfigurations.get(message.token)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            case Ready():
                self.ready.set_result(message)
            case Died():
                self._last_words = message
            case _:
                assert_never(message)

    def _deliver(self, output: SequenceOutput) -> None:
        stream = self._streams.get(output.request_id)
        if stream is None:
            return
        if output.finish_reason is not None:
            del self._streams[output.request_id]
        stream.put(output)

    async def _bury(self) -> None:
        """Collect the exit status, then fail whatever was waiting."""
        assert self._process is not None
        await _end(self._process)
        if not self._stopping:
            self.death.set_result(_cause(self._last_words, self._process.returncode))
        failure = EngineDied(self._reason())
        for stream in self._streams.values():
            stream.put(failure)
        self._streams.clear()
        for answer in self._reconfigurations.values():
            if not answer.done():
                answer.set_exception(failure)

    def _is_lost(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _reason(self) -> str:
        return self.death.result().detail if self.death.done() else "the engine is shutting down"

    def _send_bytes(self, frame: bytes) -> None:
        assert self._transport is not None
        self._transport.write(frame)


def _environment(config: EngineConfig) -> dict[str, str]:
    """OpenMP and the C library's allocator read these when the process starts.

    Workers spin just long enough to meet the next operation: with no spinning two threads are slower than one, and
    spinning for longer starves the API process. A step's activations come back from the heap instead of as fresh pages
    from the kernel: for a prefill of 2,048 tokens that is a quarter of the time.
    """
    threads = {"OMP_NUM_THREADS": str(config.num_threads), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": SPIN_COUNT}
    heap = {"MALLOC_MMAP_THRESHOLD_": KEPT_HEAP_BYTES, "MALLOC_TRIM_THRESHOLD_": KEPT_HEAP_BYTES}
    return {**os.environ, **threads, **heap}


async def _end(process: asyncio.subprocess.Process, grace_s: float = STOP_GRACE_S) -> None:
    try:
        await asyncio.wait_for(process.wait(), grace_s)
    except TimeoutError:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _cause(last_words: Died | None, returncode: int | None) -> Death:
    if last_words is not None:
        return Death(EXIT_CODES[last_words.kind], last_words.detail)
    if returncode == -signal.SIGKILL:
        return Death(EXIT_CODES["out_of_memory"], "the step loop was killed (SIGKILL): most likely out of memory")
    return Death(EXIT_CODES["crash"], f"the step loop ended with status {returncode} and no message")
