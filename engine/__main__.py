"""python -m engine --config engine.yaml: the API process. It never imports torch; the step loop it starts does.

SIGTERM drains: new requests get 503, running ones are finished for --drain-timeout seconds, then the server ends. A
second SIGTERM, or SIGINT, ends it at once.

Exit status: 0 stopped by a signal, 2 bad configuration, 3 out of memory, 4 the step loop crashed.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import math
import socket
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from engine.config import EngineConfig, load_config
from engine.core_client import CORE_COMMAND, LOGGED_COMMAND, CoreClient
from engine.draining import StopSignals
from engine.server import Server
from engine.tokenizer import Tokenizer

BAD_CONFIG = 2
MAX_PORT = 65_535
DEATH_NOTICE_S = 1.0
"""After the step loop's death the API answers this long, so that clients and probes see the reason."""
CONNECTION_GRACE_S = 0.3
DRAIN_TIMEOUT_S = 25
"""Default. Kubernetes kills 30 s after SIGTERM unless told otherwise, and what is cut off deserves its error event."""

log = logging.getLogger("servetune.engine")


def main(argv: Sequence[str] | None = None, core_command: Sequence[str] = CORE_COMMAND) -> int:
    """Serve until a signal or the step loop's death. Returns the exit status. core_command: how to start the loop."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        config = load_config(args.config)
        drain_timeout = _seconds("--drain-timeout", args.drain_timeout)
        sock = _bind(args.host, args.port, args.allow_remote)
    except (ValueError, OSError) as error:
        return _refuse(error)
    if args.step_log is not None:
        core_command = (*LOGGED_COMMAND, str(args.step_log))
    with sock:
        return asyncio.run(_run(config, sock, core_command, drain_timeout))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine", description="OpenAI-compatible inference server.")
    parser.add_argument("--config", type=Path, required=True, help="engine.yaml: fields of EngineConfig")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="0: a free port, printed once ready (default)")
    parser.add_argument("--allow-remote", action="store_true", help="permit a --host that others can reach")
    parser.add_argument(
        "--drain-timeout",
        default=str(DRAIN_TIMEOUT_S),
        help="seconds that running requests may take after SIGTERM; 0: none (default: %(default)s)",
    )
    parser.add_argument("--step-log", type=Path, help="file for what each step computes and takes (engine.step_log)")
    return parser


def _seconds(option: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{option}: expected seconds, at least 0, given {text!r}")
    return seconds


def _bind(host: str, port: int, allow_remote: bool) -> socket.socket:
    """A bound socket that does not listen yet: nobody is kept waiting while the model loads."""
    if not 0 <= port <= MAX_PORT:  # getaddrinfo would take it modulo 65536
        raise ValueError(f"--port {port}: expected a number from 0 to {MAX_PORT}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(f"--host {host}: {error.strerror}") from None
    if not allow_remote and not ipaddress.ip_address(address[0]).is_loopback:
        raise ValueError(f"--host {host}: others could reach it without a login; --allow-remote permits that")
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise ValueError(f"--host {host} --port {port}: {error.strerror}") from None
    return sock


async def _run(config: EngineConfig, sock: socket.socket, core_command: Sequence[str], drain_timeout: float) -> int:
    signals = StopSignals()
    try:
        core = await CoreClient.spawn(config, core_command)
    except OSError as error:
        log.error("the step loop cannot be started: %s", error)
        return 4
    stopped = asyncio.create_task(signals.asked.wait())
    try:
        tokenizer = Tokenizer(Path(config.model))  # while the other process loads the model
        events: set[asyncio.Future[Any]] = {core.ready, core.death, stopped}
        done, _ = await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        if done == {core.ready}:
            server = Server(core, tokenizer, core.ready.result().max_model_len)
            await _serve(server, sock, core, signals, drain_timeout)
        # The signal may have ended the step loop as well, before it could refuse to listen.
        return 0 if signals.asked.is_set() and not core.ready.done() else _status(core)
    except ValueError as error:
        return _refuse(error)
    finally:
        stopped.cancel()
        await core.stop()


async def _serve(
    server: Server, sock: socket.socket, core: CoreClient, signals: StopSignals, drain_timeout: float
) -> None:
    """Answer requests until a signal, or until the time of notice after the loop's death is over."""
    runner = web.AppRunner(
        server.application(), access_log=None, handler_cancellation=True, shutdown_timeout=CONNECTION_GRACE_S
    )
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        host, port = sock.getsockname()[:2]
        print(f"listening http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        await _first_of(signals.asked.wait(), core.death)
        if not core.death.done() and not signals.forced.is_set():
            log.info("draining: %d requests, %g s at most", server.answers.num_running, drain_timeout)
            await _first_of(server.answers.drain(drain_timeout), signals.forced.wait(), core.death, wait=drain_timeout)
        if core.death.done():
            log.error("the step loop died: %s", core.death.result().detail)
            await _first_of(signals.asked.wait(), wait=DEATH_NOTICE_S)
        elif left := server.answers.num_running:
            log.warning("stopping with %d requests unfinished", left)
        await core.stop()  # ends what still streams, with an error event
    finally:
        await runner.cleanup()


async def _first_of(*events: Coroutine[Any, Any, Any] | asyncio.Future[Any], wait: float | None = None) -> None:
    """Return when one of them is done, after `wait` seconds at the latest. Futures go on, coroutines are cancelled."""
    tasks = [asyncio.create_task(event) for event in events if asyncio.iscoroutine(event)]
    futures = [event for event in events if isinstance(event, asyncio.Future)]
    try:
        await asyncio.wait([*tasks, *futures], timeout=wait, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _status(core: CoreClient) -> int:
    if not core.death.done():
        return 0
    death = core.death.result()
    if death.exit_code == BAD_CONFIG:
        return _refuse(ValueError(death.detail))
    if not core.ready.done():
        log.error("the step loop died while loading: %s", death.detail)
    return death.exit_code


def _refuse(error: Exception) -> int:
    print(f"engine: {error}", file=sys.stderr)
    return BAD_CONFIG


if __name__ == "__main__":
    sys.exit(main())
