"""Who waits for the engine, as far as the API process knows, and when the next one is turned away instead."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from engine.config import EngineConfig
from engine.protocol import ApiError
from engine.sequence import EngineStats

RATE_WINDOW_S = 30.0
MAX_RETRY_S = 60


class WaitingRoom:
    """Requests submitted that the engine has not begun, and the recent rate at which it begins them.

    clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._opened = clock()
        self._prompt_tokens: dict[str, int] = {}
        self._begun: deque[float] = deque()

    def enter(self, request_id: str, prompt_tokens: int) -> None:
        self._prompt_tokens[request_id] = prompt_tokens

    def leave(self, request_id: str) -> None:
        """Refused, finished or aborted; unknown ids are ignored."""
        self._prompt_tokens.pop(request_id, None)

    def begin(self, request_id: str) -> None:
        """The engine runs it now. A preempted request does not come back in: it was taken."""
        if self._prompt_tokens.pop(request_id, None) is not None:
            self._begun.append(self._clock())

    def refusal(self, config: EngineConfig, stats: EngineStats, prompt_tokens: int) -> ApiError | None:
        """Why a request of `prompt_tokens` may not wait; None when it may, or finds a free place.

        429 and not 503 (which vLLM answers): the server is well, and a balancer that counts 5xx would take it out of
        service for being busy.
        """
        free = 0 if stats.waiting else max(config.max_num_seqs - stats.running, 0)
        waiting = len(self._prompt_tokens) - free
        if waiting < 0:
            return None
        if config.max_queued_requests is not None and waiting >= config.max_queued_requests:
            return self._refuse("requests", f"{waiting} requests wait, max_queued_requests is set to that")
        tokens = sum(self._prompt_tokens.values())
        # Into an empty queue goes a request of any length, or it never could.
        if config.max_queued_tokens is not None and waiting and tokens + prompt_tokens > config.max_queued_tokens:
            total = f"{tokens} prompt tokens wait and this request has {prompt_tokens}"
            return self._refuse("tokens", f"{total}; max_queued_tokens is {config.max_queued_tokens}")
        return None

    def retry_after(self) -> int:
        """Whole seconds until those who wait now have begun, at the rate of the last RATE_WINDOW_S seconds."""
        now = self._clock()
        while self._begun and self._begun[0] < now - RATE_WINDOW_S:
            self._begun.popleft()
        elapsed = min(now - self._opened, RATE_WINDOW_S)
        seconds = len(self._prompt_tokens) * elapsed / max(len(self._begun), 1)
        return min(max(math.ceil(seconds), 1), MAX_RETRY_S)

    def _refuse(self, kind: str, reason: str) -> ApiError:
        return ApiError(429, f"the queue is full: {reason}", code="rate_limit_exceeded", kind=kind,
                        retry_after=self.retry_after())  # fmt: skip
