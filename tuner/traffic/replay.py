"""Open-loop replay: every request is sent at its recorded time, whatever the server's pace.

Of a session, each turn but the first waits for the end of the turn before it and for its think time.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tuner.traffic.client import carry
from tuner.traffic.connections import Connections
from tuner.traffic.exchange import Exchange, request_bytes
from tuner.traffic.schedule import Schedule
from tuner.traffic.timer import Timer
from tuner.traffic.trace import Request, RequestRecord

CHECK_SECONDS = 0.25
LEAD_SECONDS = 0.02
"""From the end of the preparation to time 0, so that the first request is not late by its own set-up."""
AHEAD_SECONDS = 0.25
"""A connection is opened so long before the request that will need it."""
SPARE_CONNECTIONS = 8, 256
"""Fewest and most idle connections that are kept ready."""
OPENING_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Progress:
    """Running state of a replay. elapsed: seconds since its start. offered: requests whose time has come, of `total`.

    records: those of the requests that ended, in the order of their end, failed ones included.
    """

    elapsed: float
    offered: int
    total: int
    records: Sequence[RequestRecord]

    @property
    def finished(self) -> int:
        return len(self.records)


@dataclass(frozen=True, slots=True)
class Replay:
    """One record per request, in the order of the trace. stopped: the reason that `stop` gave, or None.

    duration: seconds over which requests were offered: span / time_scale, longer if a session's last turn was later,
    or until it was stopped.
    """

    records: tuple[RequestRecord, ...]
    stopped: str | None
    duration: float


Stop = Callable[[Progress], str | None]


async def replay(
    requests: Sequence[Request],
    base_url: str,
    model: str,
    *,
    time_scale: float = 1.0,
    drain_timeout: float = 10.0,
    stop: Stop | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    token_ids: bool = False,
    span: float | None = None,
) -> Replay:
    """Send each request at arrival / time_scale seconds and follow all of them to drain_timeout after the last one.

    Then unfinished ones end with error "timeout". Later turns of a session: see Schedule. stop, asked every 0.25 s,
    ends the replay at once by returning a reason: those in flight get error "stopped", the others "not_sent".
    token_ids: see request_body. span: seconds of the trace (Trace.span), default the last arrival. Cancelling closes
    all connections. Raises ValueError for a time scale, a URL or names that cannot be.
    """
    if not time_scale > 0:
        raise ValueError(f"time_scale: expected a number above 0, given {time_scale}")
    if not requests:
        raise ValueError("replay: expected at least one request")
    ordered = sorted(requests, key=lambda request: request.arrival)
    connections = Connections(base_url)
    exchanges = [
        Exchange(request, request.arrival / time_scale, request_bytes(connections, model, request, token_ids))
        for request in ordered
    ]
    run = _Run(connections, exchanges, Schedule(exchanges, time_scale), drain_timeout)
    with _frozen_heap():
        try:
            stopped_at, reason = await run.until_end(stop, on_progress)
        finally:
            await connections.close()
    duration = max((ordered[-1].arrival if span is None else span) / time_scale, run.last_scheduled)
    return Replay(
        records=tuple(exchange.record() for exchange in exchanges),
        stopped=reason,
        duration=min(stopped_at, duration) if reason is not None else duration,
    )


class _Run:
    """One replay on its way. Sending is done by whoever holds the event loop when a request falls due: the timer, or
    the arrival of a token for another request (Connection.tick), so that a flood of tokens delays no request."""

    def __init__(
        self, connections: Connections, exchanges: list[Exchange], schedule: Schedule, drain_timeout: float
    ) -> None:
        self._connections = connections
        self._exchanges = exchanges
        self._schedule = schedule
        self._drain_timeout = drain_timeout
        self._loop = asyncio.get_running_loop()
        self._start = 0.0
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._timer = Timer(self._wake)
        self._connecting: set[asyncio.Task[None]] = set()
        self._records: list[RequestRecord] = []
        self._sent = 0
        self.last_scheduled = 0.0

    async def until_end(
        self, stop: Stop | None, on_progress: Callable[[Progress], None] | None
    ) -> tuple[float, str | None]:
        """Runs the whole replay; returns the seconds it took and why it was stopped, if it was."""
        await self._connections.open_spare(self._spare(-LEAD_SECONDS))
        self._start = self._loop.time() + LEAD_SECONDS
        for exchange in self._exchanges:
            exchange.prepare(self._start, self._ended)
        self._connections.tick = self._send_due
        self._set_timer()
        opener = asyncio.create_task(self._open_ahead())
        watcher = asyncio.create_task(self._watch(stop, on_progress))
        try:
            work: set[asyncio.Future[Any]] = {self._over, watcher, opener}
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            if opener.done():
                opener.result()
            if self._over.done():
                self._over.result()
            reason = watcher.result() if watcher.done() else None
            elapsed = self._loop.time() - self._start
        finally:
            self._connections.tick = lambda now: None
            self._end(opener, watcher)
            await asyncio.gather(opener, watcher, *self._connecting, return_exceptions=True)
        self._name_unfinished(reason)
        return elapsed, reason

    def _send_due(self, now: float) -> None:
        """Send what is due; the timer then waits for the next."""
        due = now - self._start
        if self._schedule.next_time > due:
            return
        while (exchange := self._schedule.pop_due(due)) is not None:
            self._sent += 1
            self.last_scheduled = max(self.last_scheduled, exchange.scheduled)
            connection = self._connections.take()
            if connection is not None:
                connection.carry(exchange)
                continue
            task = asyncio.create_task(carry(self._connections, exchange))
            self._connecting.add(task)
            task.add_done_callback(self._connected)
        self._set_timer()

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._over.done():
            self._over.set_exception(error)

    def _set_timer(self) -> None:
        """Wake up for the next request; when there is none, for the drain deadline."""
        if self._over.done():
            return  # answers may still end while connections close; nothing more is sent
        waiting = self._schedule.waiting
        self._timer.set(
            self._start + (self._schedule.next_time if waiting else self.last_scheduled + self._drain_timeout)
        )

    def _wake(self) -> None:
        now = self._loop.time()
        if self._schedule.waiting:
            self._send_due(now)
            self._set_timer()
        elif now >= self._start + self.last_scheduled + self._drain_timeout:
            self._finish()

    def _finish(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _ended(self, exchange: Exchange) -> None:
        self._records.append(exchange.record())
        for unsendable in self._schedule.ended(exchange):
            self._records.append(unsendable.record())
        if len(self._records) == len(self._exchanges):
            self._finish()
        else:
            self._set_timer()

    def _spare(self, elapsed: float) -> int:
        fewest, most = SPARE_CONNECTIONS
        return min(fewest + self._schedule.due_before(elapsed + AHEAD_SECONDS), most)

    async def _open_ahead(self) -> None:
        while True:
            await asyncio.sleep(OPENING_SECONDS)
            self._connections.close_stale()
            if self._schedule.waiting:
                await self._connections.open_spare(self._spare(self._loop.time() - self._start))

    async def _watch(self, stop: Stop | None, on_progress: Callable[[Progress], None] | None) -> str:
        """Returns the reason to stop, or never."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            elapsed = self._loop.time() - self._start
            progress = Progress(elapsed, self._sent, len(self._exchanges), tuple(self._records))
            if on_progress is not None:
                on_progress(progress)
            reason = stop(progress) if stop is not None else None
            if reason is not None:
                return reason

    def _end(self, *tasks: asyncio.Task[None] | asyncio.Task[str]) -> None:
        self._timer.close()
        self._over.cancel()
        for task in (*tasks, *self._connecting):
            task.cancel()

    def _name_unfinished(self, reason: str | None) -> None:
        """Types the error of those that have not ended. No error and no finish: the answer had not ended."""
        if reason is not None:
            self._schedule.abandon("stopped")
        for exchange in self._exchanges:
            if exchange.end is None:
                exchange.error = exchange.error or ("timeout" if reason is None else "stopped")
                self._schedule.ended(exchange)


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Keeps the garbage collector away: even without a tuner's heap (Optuna, pandas) a collection of the replay's own
    records takes longer than the gap between two requests, and there is next to no cyclic garbage to find."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
