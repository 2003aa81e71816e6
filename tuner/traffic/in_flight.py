"""What a proxy is passing on, and the end: those in flight may finish, for a while, and are cut off then."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class Stop:
    """`asked` by the first SIGINT or SIGTERM, `forced` by the second."""

    def __init__(self, asked: asyncio.Event | None = None) -> None:
        self.asked = asked or asyncio.Event()
        self.forced = asyncio.Event()

    @contextmanager
    def by_signals(self) -> Iterator[None]:
        """While this lasts the two signals mean that."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        (self.forced if self.asked.is_set() else self.asked).set()


class InFlight:
    """The tasks of the requests that are being passed on. cutting: whether they are being cut off."""

    def __init__(self) -> None:
        self.cutting = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """While this lasts the current task is one of them."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._idle.clear()
        try:
            yield
        finally:
            self._tasks.discard(task)
            if not self._tasks:
                self._idle.set()

    async def end(self, seconds: float, forced: asyncio.Event) -> None:
        """Wait until none is left, `seconds` at most and not once `forced` is set; cancel the others."""
        if self._tasks:
            log.warning("%d requests in flight may take %g s; Ctrl-C again cuts them off", len(self._tasks), seconds)
        over = [asyncio.create_task(event.wait()) for event in (self._idle, forced)]
        await asyncio.wait(over, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in over:
            task.cancel()
        self.cutting = True
        for passing in self._tasks:
            passing.cancel()
        await self._idle.wait()
