"""The recording proxy: passes every byte through untouched and writes one trace line per finished completion."""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from tuner.traffic.anonymize import Anonymizer, anonymous_header
from tuner.traffic.connections import IDLE_SECONDS
from tuner.traffic.exchange import PATHS, base_url
from tuner.traffic.in_flight import InFlight, Stop
from tuner.traffic.observation import Observation, Unrecordable
from tuner.traffic.recording_file import RecordingFile
from tuner.traffic.redaction import Redactor
from tuner.traffic.trace_lines import VERSION, HeaderLine, RequestLine, encode_header, encode_line, read_back

log = logging.getLogger(__name__)

RECORDED_PATHS = {path: endpoint for endpoint, path in PATHS.items()}
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
CLOSING_SECONDS = 0.1
"""For connections that carry nothing any more; aiohttp takes 0 for no limit."""


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
    redactor: Redactor | None = None,
    anonymizer: Anonymizer | None = None,
) -> Recording:
    """Serve on host:port (0: any free port) in front of `upstream` until SIGINT, SIGTERM or `stop`, recording to `out`.
    Requests in flight may then finish, for SHUTDOWN_SECONDS or until a second signal.

    out must not exist; it gets mode 0600, for it holds prompts. redactor, anonymizer: applied before anything is
    written, in this order. on_ready is called with the bound URL. Raises ValueError for a bad upstream, an existing
    file, a port that is taken, or an address that is not loopback unless allow_remote: whoever reaches the proxy
    reaches the server behind it.
    """
    if not allow_remote and not _is_loopback(host):
        raise ValueError(f"listen {host}: others could reach the server through it; --allow-remote permits that")
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"listen {host}:{port}: expected a port from 0 to {MAX_PORT}")
    if URL(upstream).scheme not in ("http", "https") or not URL(upstream).host:
        raise ValueError(f"upstream: expected http://HOST:PORT, given {upstream!r}")
    upstream = base_url(upstream)
    ending = Stop(stop)
    with RecordingFile(out) as file, ending.by_signals():
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
        timeout = aiohttp.ClientTimeout()
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            recorder = _Recorder(upstream, session, file, redactor or Redactor(()), anonymizer)
            try:
                if (reason := file.append(encode_header(_header(upstream, anonymizer)))) is not None:
                    raise ValueError(f"{out}: cannot be written: {reason}")
                await _serve(recorder, host, port, on_ready, ending)
            except ValueError:
                out.unlink()
                raise
    return Recording(recorder.written, dict(recorder.skipped))


def _is_loopback(host: str) -> bool:
    try:
        address = socket.getaddrinfo(host, None)[0][4][0]
    except socket.gaierror as error:
        raise ValueError(f"listen {host}: {error.strerror}") from None
    return ipaddress.ip_address(address).is_loopback


async def _serve(recorder: _Recorder, host: str, port: int, on_ready: Callable[[str], None] | None, stop: Stop) -> None:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", recorder.handle)
    # A client that leaves must leave the upstream too: it would work on for nobody, as it does not without the proxy.
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=CLOSING_SECONDS)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ValueError(f"listen {host}:{port}: {os.strerror(error.errno or 0)}") from None
        if on_ready is not None:
            bound_host, bound_port = runner.addresses[0][:2]
            on_ready(f"http://{bound_host}:{bound_port}")
        await stop.asked.wait()
        await site.stop()
        await recorder.in_flight.end(SHUTDOWN_SECONDS, stop.forced)
    finally:
        await runner.cleanup()


class _Recorder:
    """The proxy's one handler and what it counts."""

    def __init__(
        self,
        upstream: str,
        session: aiohttp.ClientSession,
        out: RecordingFile,
        redactor: Redactor,
        anonymizer: Anonymizer | None,
    ) -> None:
        self._upstream = upstream.rstrip("/")
        self._session = session
        self._out = out
        self._redactor = redactor
        self._anonymizer = anonymizer
        self._first: float | None = None
        self._seen = 0
        self.in_flight = InFlight()
        self.written = 0
        self.skipped: collections.Counter[str] = collections.Counter()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request: forwarded; observed when it is a completion."""
        with self.in_flight.counted():
            return await self._forward(request, self._observe(request))

    async def _forward(self, request: web.Request, observation: Observation | None) -> web.StreamResponse:
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
            self.skip(observation, f"upstream failed ({type(error).__name__})")
            problem = {"error": {"message": "the upstream server cannot be reached", "type": "bad_gateway"}}
            return web.json_response(problem, status=502)
        except asyncio.CancelledError:
            self.skip(observation, self.whose_end)
            raise
        async with answer:
            return await self._pass_on(request, answer, observation)

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

    async def _pass_on(
        self, request: web.Request, answer: aiohttp.ClientResponse, observation: Observation | None
    ) -> web.StreamResponse:
        """Streams the answer through. Its line is written before the client gets the bytes that complete it: what a
        client holds whole is on file."""
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers))
        watched = _Watched(self, observation, answer)
        try:
            await response.prepare(request)
            while data := await _next(answer):
                watched.bytes_pass(data)
                await response.write(data)
            if data is None:
                watched.ends("upstream broke off")
                # Closing without the end of the body is how the client learns that the stream broke off.
                response.force_close()
                if request.transport is not None:
                    request.transport.close()
                return response
            watched.ends()
            await response.write_eof()
        except (aiohttp.ClientError, OSError):
            watched.ends("client went away")
        except asyncio.CancelledError:
            watched.ends(self.whose_end)
            raise
        return response

    @property
    def whose_end(self) -> str:
        """Why a request that was cancelled was."""
        return "recording ended" if self.in_flight.cutting else "client went away"

    def skip(self, observation: Observation | None, reason: str) -> None:
        """Count a completion that is not recorded."""
        if observation is not None:
            self.skipped[reason] += 1
            log.warning("request %s not recorded: %s", observation.id, reason)

    def write(self, observation: Observation) -> None:
        """Record a completion, or count it when it cannot be."""
        try:
            text = encode_line(self._fit_to_write(observation.line()))
        except Unrecordable as reason:
            self.skip(observation, str(reason))
        except ValueError:
            self.skip(observation, "values that the trace format does not take")
        else:
            if (failure := self._out.append(text)) is None:
                self.written += 1
            else:
                self.skipped[f"trace file: {failure}"] += 1

    def _fit_to_write(self, line: RequestLine) -> RequestLine:
        line = self._redactor.line(read_back(line))
        return line if self._anonymizer is None else self._anonymizer.line(line, line.id)


class _Watched:
    """One answer on its way to the client; decides when its request is recorded, once."""

    def __init__(self, recorder: _Recorder, observation: Observation | None, answer: aiohttp.ClientResponse) -> None:
        self._recorder = recorder
        self._observation = observation
        if observation is not None:
            encoding = answer.headers.get("Content-Encoding", "")
            observation.answer_begins(answer.status, answer.content_type, encoding, answer.content_length)

    def bytes_pass(self, data: bytes) -> None:
        """To be called before the client gets them."""
        if self._observation is not None:
            self._observation.answer_bytes(data)
            if self._observation.answered:
                self.ends()

    def ends(self, problem: str | None = None) -> None:
        """No more bytes. problem: why, if it was before the end; an answer that had said its last word still counts."""
        observation, self._observation = self._observation, None
        if observation is None:
            return
        if problem is None or observation.finished:
            self._recorder.write(observation)
        else:
            self._recorder.skip(observation, problem)


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


def _header(upstream: str, anonymizer: Anonymizer | None) -> HeaderLine:
    if anonymizer is not None:
        return anonymous_header(anonymizer, "tune record")
    address = URL(upstream).with_user(None).with_query(None)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return HeaderLine(VERSION, {"source": "tune record", "upstream": str(address), "recorded_at": now})
