"""Kept-alive connections to one server, opened before they are needed, each carrying one exchange at a time.

aiohttp's client takes some 400 microseconds to begin a request and 40 to receive a token, and while a step's tokens
for a thousand streams are read nothing else is sent: send lag p99 was 20 ms at 200 requests/s (benchmarks/send_lag.py).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

from tuner.traffic.http1 import MalformedResponse, ResponseReader

IDLE_SECONDS = 2.0
"""Idle connections are closed before the server does it: uvicorn's keep-alive is 5 s, and a race costs a request."""


class Carried(Protocol):
    """What a connection carries: one request and its response. Times are those of the event loop's clock."""

    payload: bytes

    def begun(self, now: float) -> None:
        """The request goes to the kernel now."""

    def received(self, response: ResponseReader, body: bytes, now: float) -> bool:
        """A piece has come, `body` of it. Returns whether nothing more is wanted of this response."""

    def ended(self, error: str | None, now: float) -> None:
        """Called once. error: "refused" or "connection" without a response, "protocol" for what is no HTTP,
        "truncated" for a body that broke off; None: received() said that it was the end."""


class Connection(asyncio.Protocol):
    """One connection. tick(now) is called before each piece is looked at, so that what is due is sent first."""

    def __init__(self, home: Connections) -> None:
        self._home = home
        self._clock = home.clock
        self._transport: asyncio.Transport | None = None
        self._carried: Carried | None = None
        self._reader = ResponseReader()
        self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def carry(self, exchange: Carried) -> None:
        """Send the request. The connection must be idle and usable."""
        assert self._transport is not None and self._carried is None
        self._carried, self._reader = exchange, ResponseReader()
        payload = exchange.payload
        exchange.begun(self._clock())
        self._transport.write(payload)

    def abort(self) -> None:
        """Close at once; what is carried is told nothing."""
        self._carried = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = self._clock()
        self._home.tick(now)
        carried, reader = self._carried, self._reader
        if carried is None:
            self.abort()  # nobody asked
            return
        try:
            over = carried.received(reader, reader.feed(data), now)
        except MalformedResponse:
            self.abort()
            carried.ended("protocol", now)
            return
        if over or reader.complete:
            self._carried = None
            if reader.complete and reader.reusable:
                self._home.keep(self, now)
            else:
                self.abort()
            carried.ended(None, now)

    def connection_lost(self, exc: Exception | None) -> None:
        carried, self._carried = self._carried, None
        self._transport = None
        self._home.forget(self)
        if carried is not None:
            self._reader.close()
            error = None if self._reader.complete else "connection" if self._reader.status is None else "truncated"
            carried.ended(error, self._clock())


class Connections:
    """The connections to a server at `base_url` ("http://host:port", with a path if need be). See Connection.tick."""

    def __init__(self, base_url: str, tick: Callable[[float], None] = lambda now: None) -> None:
        """Raises ValueError for what is no HTTP URL."""
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"{base_url}: expected http://HOST:PORT")
        self.host = url.netloc.rpartition("@")[2]
        self.path = url.path.rstrip("/")
        self.tick = tick
        self.clock = asyncio.get_running_loop().time
        self._name, self._port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if url.scheme == "https" else None
        self._addresses: list[str] = []
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()

    async def open(self) -> Connection:
        """A new connection. Raises OSError."""
        loop = asyncio.get_running_loop()
        if not self._addresses:
            found = await loop.getaddrinfo(self._name, self._port, type=1)
            self._addresses = list(dict.fromkeys(str(address[4][0]) for address in found))
        for address in list(self._addresses):
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(self), address, self._port, ssl=self._ssl,
                    server_hostname=self._name if self._ssl else None,
                )  # fmt: skip
            except OSError:
                if address == self._addresses[-1]:
                    raise
                continue
            self._addresses = [address]
            self._all.add(connection)
            return connection
        raise AssertionError("getaddrinfo found no address and no error")

    async def open_spare(self, count: int) -> None:
        """Have up to `count` idle connections; fewer if the server does not let us in."""
        # One after the other: opening many at once would hold the event loop for as long as a request may be late.
        while len(self._idle) < count:
            try:
                connection = await self.open()
            except OSError:
                return
            self.keep(connection, self.clock())

    def take(self) -> Connection | None:
        """The connection that became idle last, if there is any."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    def keep(self, connection: Connection, now: float) -> None:
        """The connection is idle from now on."""
        connection.idle_since = now
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self._all.discard(connection)

    def close_stale(self) -> None:
        """Close what has been idle for IDLE_SECONDS."""
        fresh = self.clock() - IDLE_SECONDS
        stale = [connection for connection in self._idle if connection.idle_since < fresh]
        self._idle = [connection for connection in self._idle if connection.idle_since >= fresh]
        for connection in stale:
            connection.abort()

    async def close(self) -> None:
        """Abort every connection; when this returns none is left."""
        for connection in tuple(self._all):
            connection.abort()
        self._idle.clear()
        while self._all:
            await asyncio.sleep(0)
