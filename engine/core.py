"""The step loop: a process that owns the model and does nothing but drain messages, step, and send outputs.

Started by `engine.core_client` as `python -m engine.core_process FD`; FD is one end of a socket pair. It ends when
the other end closes, so no kill of the API process leaves it behind. The loop itself is free of torch.
"""

from __future__ import annotations

import ctypes
import gc
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

import msgspec

from engine.config import parse_config
from engine.framing import Connection
from engine.messages import Abort, Add, Died, Outputs, Ready, Reconfigure, Reconfigured, Rejected, ToEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.config import EngineConfig
    from engine.llm_engine import LLMEngine

PR_SET_PDEATHSIG = 1
DETAIL_CHARS = 300


def main(load: Callable[[EngineConfig], LLMEngine]) -> int:
    """Load the model named by the first frame and serve until the other end closes. Returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they may reach the whole group; the API process decides
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    connection = Connection(socket.socket(fileno=int(sys.argv[1])))
    try:
        _load_and_serve(connection, load)
        return 0
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0
    except BaseException as error:
        connection.send(describe_death(error))
        if not is_out_of_memory(error):
            raise
    return 1


def serve(engine: LLMEngine, connection: Connection) -> None:
    """Drain, step, send, until the other end closes (EOFError). An idle engine blocks on the socket."""
    while True:
        for message in connection.receive(wait=not engine.has_work()):
            _handle(engine, connection, message)
        outputs, begun = (engine.step(), engine.begun) if engine.has_work() else ([], [])
        connection.send(Outputs(outputs, engine.stats(), begun))


def describe_death(error: BaseException) -> Died:
    """What to tell the API process: one line of class, message and place, and whether memory was the cause."""
    text = " ".join(str(error).split())[:DETAIL_CHARS]
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(place[0].filename).name}:{place[0].lineno})" if place else ""
    kind = "out_of_memory" if is_out_of_memory(error) else "crash"
    return Died(kind, f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}")


def is_out_of_memory(error: BaseException) -> bool:
    """True for MemoryError, torch's OutOfMemoryError (known by name: torch may not be loaded) and allocator texts."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _load_and_serve(connection: Connection, load: Callable[[EngineConfig], LLMEngine]) -> None:
    config = parse_config(msgspec.msgpack.decode(connection.receive_first()), source="engine")
    try:
        engine = load(config)
    except (ValueError, FileNotFoundError) as error:
        connection.send(Died("config", " ".join(str(error).split())))
        return
    gc.freeze()  # the loaded model never becomes garbage; keep full collections short
    connection.send(Ready(engine.max_model_len, engine.stats().blocks_total))
    serve(engine, connection)


def _handle(engine: LLMEngine, connection: Connection, message: ToEngine) -> None:
    match message:
        case Add(request_id, prompt, params, priority, tenant):
            try:
                engine.add(request_id, prompt, params, priority, tenant)
            except ValueError as error:
                connection.send(Rejected(request_id, str(error)))
        case Abort(request_id):
            engine.abort(request_id)
        case Reconfigure():
            connection.send(_reconfigure(engine, message))
        case _:
            assert_never(message)


def _reconfigure(engine: LLMEngine, message: Reconfigure) -> Reconfigured:
    """No changes at all is how the API process asks whether the loop still answers."""
    started = time.perf_counter()
    error = None
    if message.changes:
        try:
            engine.reconfigure(engine.config.updated(message.changes))
        except ValueError as problem:
            error = str(problem)
    return Reconfigured(message.token, error, time.perf_counter() - started, engine.config.model_dump())


def _die_with_parent() -> None:
    """On Linux the kernel kills this process with its parent, even inside a long call that never reads the socket."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
