"""The recording proxy: passes every byte through untouched and writes one trace line per finished completion."""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from tuner.traffic.observation import Observation, Unrecordable
from tuner.traffic.trace import Endpoint
from tuner.traffic.trace_lines import VERSION, HeaderLine, encode_header

log = logging.getLogger(__name__)

RECORDED_PATHS: Mapping[str, Endpoint] = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}
HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
        "upgrade",
    }
)  # fmt: skip
"""RFC 9110 section 7.6.1: between two neighbours, not end to end."""
MAX_PORT = 65_535
SHUTDOWN_SECONDS = 5.0
"""Requests in flight may still finish, and be recorded, for this long after the end was asked for."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What a recording session left. skipped: completions that were asked for but not written, by reason."""

    written: int
    skipped: Mapping[str, int]


async def record(
    upstream: str,
    host: str,
    port: int,
    out: Path,
    *,
    on_ready: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
    allow_remote: bool = False,
) -> Recording:
    """Serve on host:port (0: any free port) in front of `upstream` until SIGINT, SIGTERM or `stop`, recording to `out`.

    out must not exist; it gets mode 0600, for it holds prompts. on_ready is called with the bound URL. Raises
    ValueError for a bad upstream, an existing file, a port that is taken, or an address that is not loopback unless
    allow_remote: whoever reaches the proxy reaches the server behind it.
    """
    if not allow_remote and not _is_loopback(host):
        raise ValueError(f"listen {host}: others could reach the server through it; --allow-remote permits that")
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"listen {host}:{port}: expected a port from 0 to {MAX_PORT}")
    if URL(upstream).scheme not in ("http", "https") or not URL(upstream).host:
        raise ValueError(f"upstream: expected http://HOST:PORT, given {upstream!r}")
    stop = stop or asyncio.Event()
    with _create(out) as file, _stopped_by_signals(stop):
        file.write(encode_header(HeaderLine(VERSION, dict(_provenance(upstream)))))
        file.flush()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout()
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            recorder = _Recorder(upstream, session, file)
            try:
                await _serve(recorder, host, port, on_ready, stop)
            except ValueError:
                out.unlink()
                raise
        os.fsync(file.fileno())
    return Recording(recorder.written, dict(recorder.skipped))


def _is_loopback(host: str) -> bool:
    try:
        address = socket.getaddrinfo(host, None)[0][4][0]
    except socket.gaierror as error:
        raise ValueError(f"listen {host}: {error.strerror}") from None
    return ipaddress.ip_address(address).is_loopback


async def _serve(
    recorder: _Recorder, host: str, port: int, on_ready: Callable[[str], None] | None, stop: asyncio.Event
) -> None:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", recorder.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ValueError(f"listen {host}:{port}: {os.strerror(error.errno or 0)}") from None
        if on_ready is not None:
            bound_host, bound_port = runner.addresses[0][:2]
            on_ready(f"http://{bound_host}:{bound_port}")
        await stop.wait()
    finally:
        await runner.cleanup()


class _Recorder:
    """The proxy's one handler and what it counts."""

    def __init__(self, upstream: str, session: aiohttp.ClientSession, out: BinaryIO) -> None:
        self._upstream = upstream.rstrip("/")
        self._session = session
        self._out = out
        self._first: float | None = None
        self._seen = 0
        self.written = 0
        self.skipped: collections.Counter[str] = collections.Counter()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request: forwarded; observed when it is a completion."""
        observation = self._observe(request)
        try:
            answer = await self._session.request(
                request.method,
                URL(self._upstream + request.raw_path, encoded=True),
                headers=_end_to_end(request.headers, "host"),
                data=_tee(request, observation) if request.body_exists else None,
                allow_redirects=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        except (aiohttp.ClientError, OSError) as error:
            self._skip(observation, f"upstream failed ({type(error).__name__})")
            problem = {"error": {"message": "the upstream server cannot be reached", "type": "bad_gateway"}}
            return web.json_response(problem, status=502)
        async with answer:
            response, problem_reason = await _pass_on(request, answer, observation)
        if problem_reason is not None:
            self._skip(observation, problem_reason)
        elif observation is not None:
            self._write(observation)
        return response

    def _observe(self, request: web.Request) -> Observation | None:
        endpoint = RECORDED_PATHS.get(request.path)
        if endpoint is None or request.method != "POST":
            return None
        now = asyncio.get_running_loop().time()
        if self._first is None:
            self._first = now
        self._seen += 1
        tenant, slo_class = request.headers.get("X-Tenant"), request.headers.get("X-SLO-Class")
        return Observation(f"r{self._seen:06d}", now - self._first, endpoint, tenant, slo_class)

    def _skip(self, observation: Observation | None, reason: str) -> None:
        if observation is not None:
            self.skipped[reason] += 1
            log.warning("request %s not recorded: %s", observation.id, reason)

    def _write(self, observation: Observation) -> None:
        try:
            self._out.write(observation.line())
            self._out.flush()
        except Unrecordable as reason:
            self._skip(observation, str(reason))
        except OSError as error:
            self._skip(observation, f"trace file: {error.strerror}")
        else:
            self.written += 1


async def _pass_on(
    request: web.Request, answer: aiohttp.ClientResponse, observation: Observation | None
) -> tuple[web.StreamResponse, str | None]:
    """Streams the answer through; returns why it did not reach its end, if it did not."""
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers))
    if observation is not None:
        encoding = answer.headers.get("Content-Encoding", "")
        observation.answer_begins(answer.status, answer.content_type, encoding)
    try:
        await response.prepare(request)
        while data := await _next(answer):
            if observation is not None:
                observation.answer_bytes(data)
            await response.write(data)
        if data is None:
            # Closing without the end of the body is how the client learns that the stream broke off.
            response.force_close()
            if request.transport is not None:
                request.transport.close()
            return response, "upstream broke off"
        await response.write_eof()
    except (aiohttp.ClientError, OSError):
        return response, "client went away"
    return response, None


async def _next(answer: aiohttp.ClientResponse) -> bytes | None:
    """The next piece of the body as it came, b"" at its end, None when the upstream breaks off."""
    try:
        return await answer.content.readany()
    except (aiohttp.ClientError, OSError):
        return None


async def _tee(request: web.Request, observation: Observation | None) -> AsyncIterator[bytes]:
    """The request's body as it comes; the observation gets a copy."""
    async for data in request.content.iter_any():
        if observation is not None:
            observation.request_bytes(data)
        yield data


def _end_to_end(headers: Mapping[str, str], *dropped: str) -> CIMultiDict[str]:
    """A copy without the headers that belong to one connection, those named by Connection included."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    unwanted = HOP_BY_HOP | named | set(dropped)
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in unwanted)


def _provenance(upstream: str) -> dict[str, str]:
    address = URL(upstream).with_user(None).with_query(None)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"source": "tune record", "upstream": str(address), "recorded_at": now}


def _create(out: Path) -> BinaryIO:
    try:
        return os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    except FileExistsError:
        raise ValueError(f"{out}: already exists; expected a new file") from None
    except OSError as error:
        raise ValueError(f"{out}: cannot be created: {error.strerror}") from None


@contextmanager
def _stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
