"""Watches an engine while it works: a death or a standstill ends the work with a typed failure."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from tuner.errors import EngineHung
from tuner.serving.api import EngineApi
from tuner.serving.process import EngineProcess

CHECK_SECONDS = 0.1
_T = TypeVar("_T")


class Watchdog:
    """outstanding: whether the engine has work now. finished: requests that ended; with the engine's own token
    counters it is what counts as progress. hang_timeout: seconds without any before the engine counts as hung."""

    def __init__(self, process: EngineProcess, api: EngineApi, hang_timeout: float) -> None:
        self._process = process
        self._api = api
        self._hang_timeout = hang_timeout
        self.outstanding = True
        self.finished = 0

    async def run(self, work: asyncio.Future[_T]) -> _T:
        """The result of `work`. Raises EngineCrashed, EngineOutOfMemory or EngineHung, having cancelled it."""
        watch = asyncio.create_task(self._watch())
        try:
            tasks: set[asyncio.Future[Any]] = {work, watch}
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if watch in done:
                watch.result()
            return work.result()
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _watch(self) -> None:
        """Raises what went wrong; never returns."""
        loop = asyncio.get_running_loop()
        seen, since, asked = await self._progress(), loop.time(), loop.time()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if (failure := self._process.failure()) is not None:
                raise failure
            if not self.outstanding:
                since = loop.time()
                continue
            # Asked seldom: rendering the counters costs the engine time that the requests should have.
            if loop.time() - asked < self._hang_timeout / 4:
                continue
            now, asked = await self._progress(), loop.time()
            if now != seen:
                seen, since = now, loop.time()
            elif loop.time() - since >= self._hang_timeout:
                raise EngineHung(f"no token and no finished request for {self._hang_timeout:g} s")

    async def _progress(self) -> tuple[float, ...]:
        counters = await self._api.counters(timeout=min(2.0, self._hang_timeout))
        return (self.finished, counters.get("prompt_tokens", 0.0), counters.get("generation_tokens", 0.0))
