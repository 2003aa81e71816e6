"""The way out: who is still being answered, and what newcomers are told once the server is to end."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Callable

from aiohttp import web

from engine.json_http import Handler
from engine.protocol import ApiError


class Answers:
    """Requests that the engine is working for. Once draining, nobody new is taken.

    clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running = 0
        self._ends_at: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_running(self) -> int:
        return self._running

    def check_open(self) -> None:
        """Raises ApiError 503 while draining. Retry-After: by then this process is gone and another has its place."""
        if self._ends_at is not None:
            left = max(math.ceil(self._ends_at - self._clock()), 1)
            raise ApiError(503, "the server is shutting down", code="server_draining", retry_after=left)

    def counted(self, handler: Handler) -> Handler:
        """The handler, refused with ApiError 503 while draining, and waited for by `drain` otherwise."""

        async def count(request: web.Request) -> web.StreamResponse:
            self.check_open()
            self._running += 1
            self._idle.clear()
            try:
                return await handler(request)
            finally:
                self._running -= 1
                if not self._running:
                    self._idle.set()

        return count

    async def drain(self, seconds: float) -> None:
        """Take nobody new, and return when the last one has been answered. seconds: what the caller will wait."""
        self._ends_at = self._clock() + seconds
        await self._idle.wait()


class StopSignals:
    """What the process was told: `asked` by the first SIGTERM, `forced` by the second or by SIGINT.

    Ctrl-C does not drain: whoever presses it is waiting.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.forced = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        loop.add_signal_handler(signal.SIGINT, self._on_sigint)

    def _on_sigterm(self) -> None:
        (self.forced if self.asked.is_set() else self.asked).set()

    def _on_sigint(self) -> None:
        self.asked.set()
        self.forced.set()
