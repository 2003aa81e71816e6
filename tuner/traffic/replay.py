"""Open-loop replay: every request is sent at its recorded time, whatever the server's pace."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp

from tuner.traffic.client import Exchange, open_session, request_body
from tuner.traffic.trace import Request, RequestRecord

CHECK_SECONDS = 0.25
LEAD_SECONDS = 0.02
"""From the end of the preparation to time 0, so that the first request is not late by its own set-up."""


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

    duration: seconds over which requests were offered: span / time_scale, or until it was stopped.
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
    """Send each request at arrival / time_scale seconds and follow all of them to drain_timeout after the last arrival.

    Then unfinished ones end with error "timeout". stop, asked every 0.25 s, ends the replay at once by returning a
    reason: those in flight get error "stopped", the others "not_sent". token_ids: see request_body. span: seconds of
    the trace (Trace.span), default the last arrival. Cancelling closes all connections.
    """
    if not time_scale > 0:
        raise ValueError(f"time_scale: expected a number above 0, given {time_scale}")
    if not requests:
        raise ValueError("replay: expected at least one request")
    ordered = sorted(requests, key=lambda request: request.arrival)
    exchanges = [
        Exchange(request, request.arrival / time_scale, base_url, request_body(model, request, token_ids))
        for request in ordered
    ]
    async with open_session() as session:
        run = _Run(session, exchanges, drain_timeout)
        with _frozen_heap():
            stopped_at, reason = await run.until_end(stop, on_progress)
    duration = (ordered[-1].arrival if span is None else span) / time_scale
    return Replay(
        records=tuple(exchange.record() for exchange in exchanges),
        stopped=reason,
        duration=min(stopped_at, duration) if reason is not None else duration,
    )


class _Run:
    """The tasks of one replay."""

    def __init__(self, session: aiohttp.ClientSession, exchanges: list[Exchange], drain_timeout: float) -> None:
        self._session = session
        self._exchanges = exchanges
        self._drain_timeout = drain_timeout
        self._loop = asyncio.get_running_loop()
        self._start = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._records: list[RequestRecord] = []

    async def until_end(
        self, stop: Stop | None, on_progress: Callable[[Progress], None] | None
    ) -> tuple[float, str | None]:
        """Runs the whole replay; returns the seconds it took and why it was stopped, if it was."""
        self._start = self._loop.time() + LEAD_SECONDS
        sender = asyncio.create_task(self._send_all())
        watcher = asyncio.create_task(self._watch(stop, on_progress))
        reason = None
        try:
            done, _ = await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if sender in done:
                sender.result()
            else:
                reason = watcher.result()
            elapsed = self._loop.time() - self._start
        finally:
            await self._cancel(sender, watcher)
        self._name_unfinished(reason)
        return elapsed, reason

    async def _send_all(self) -> None:
        loop = self._loop
        for exchange in self._exchanges:
            delay = self._start + exchange.scheduled - loop.time()
            if delay > 0:
                await asyncio.sleep(delay)
            self._tasks.append(asyncio.create_task(self._follow(exchange)))
        deadline = self._start + self._exchanges[-1].scheduled + self._drain_timeout
        await asyncio.wait(self._tasks, timeout=max(0.0, deadline - loop.time()))

    async def _follow(self, exchange: Exchange) -> None:
        await exchange.run(self._session, self._start)
        self._records.append(exchange.record())

    async def _watch(self, stop: Stop | None, on_progress: Callable[[Progress], None] | None) -> str:
        """Returns the reason to stop, or never."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            elapsed = self._loop.time() - self._start
            progress = Progress(elapsed, len(self._tasks), len(self._exchanges), tuple(self._records))
            if on_progress is not None:
                on_progress(progress)
            reason = stop(progress) if stop is not None else None
            if reason is not None:
                return reason

    async def _cancel(self, *others: asyncio.Task[None] | asyncio.Task[str]) -> None:
        running = [task for task in (*self._tasks, *others) if not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for task in self._tasks:
            if not task.cancelled():
                task.result()

    def _name_unfinished(self, reason: str | None) -> None:
        """Types the error of those that were cancelled. No error and no finish: the answer had not ended."""
        for exchange, task in zip(self._exchanges, self._tasks, strict=False):
            if task.cancelled():
                exchange.error = "timeout" if reason is None else "stopped"
        for exchange in self._exchanges[len(self._tasks) :]:
            exchange.error = "not_sent"


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Keeps the garbage collector away from what exists already.

    A tuner's heap (Optuna, pandas) makes a full collection take longer than the gap between two requests.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
