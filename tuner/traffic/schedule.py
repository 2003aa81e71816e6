"""Schedule: which request of a replay is due next; turns of a session follow each other. Knows no network."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

from tuner.traffic.exchange import Exchange


class Schedule:
    """The exchanges of a replay, sorted by arrival, and when each is due (seconds since the replay's start).

    A session's first turn, and a request without a session, is due at arrival / time_scale. A later turn is due when
    the turn before it has ended plus think_time / time_scale, or without a think time at its own arrival / time_scale
    if that is later than this end; that moment becomes its `scheduled`. After a turn that failed, the session's other
    turns are never due: their prompts hold an answer that nobody got.
    """

    def __init__(self, exchanges: Sequence[Exchange], time_scale: float) -> None:
        self._time_scale = time_scale
        self._heap: list[tuple[float, int, Exchange]] = []
        self._sessions: defaultdict[str, deque[tuple[int, Exchange]]] = defaultdict(deque)
        begun: set[str] = set()
        for index, exchange in enumerate(exchanges):
            session = exchange.request.session
            if session is not None and session in begun:
                self._sessions[session].append((index, exchange))
                continue
            if session is not None:
                begun.add(session)
            self._heap.append((exchange.scheduled, index, exchange))
        heapq.heapify(self._heap)

    @property
    def waiting(self) -> bool:
        """Whether any request has a time at which it is due."""
        return bool(self._heap)

    @property
    def next_time(self) -> float:
        """When the next request is due; infinite when none is."""
        return self._heap[0][0] if self._heap else math.inf

    def due_before(self, time: float) -> int:
        """How many requests are due before `time`."""
        count, places = 0, [0]
        while places:
            place = places.pop()
            if place < len(self._heap) and self._heap[place][0] < time:
                count += 1
                places += (2 * place + 1, 2 * place + 2)  # only below an early one can there be another
        return count

    def pop_due(self, time: float) -> Exchange | None:
        """The next request that is due at `time`, if any."""
        return heapq.heappop(self._heap)[2] if self.next_time <= time else None

    def ended(self, exchange: Exchange) -> tuple[Exchange, ...]:
        """An exchange has ended: its session's next turn gets its time. Returns those that will now never be sent."""
        session = exchange.request.session
        turns = self._sessions.get(session) if session is not None else None
        if not turns:
            return ()
        if exchange.error is not None:
            lost = tuple(turn for _, turn in turns)
            turns.clear()
            return _unsendable(lost, f"{exchange.error} of {exchange.request.id}")
        assert exchange.end is not None
        index, turn = turns.popleft()
        think_time = turn.request.think_time
        if think_time is None:
            turn.scheduled = max(turn.scheduled, exchange.end)
        else:
            turn.scheduled = exchange.end + think_time / self._time_scale
        heapq.heappush(self._heap, (turn.scheduled, index, turn))
        return ()

    def abandon(self, reason: str) -> tuple[Exchange, ...]:
        """Nothing more will be sent, for `reason`; returns what was not."""
        left = [exchange for _, _, exchange in self._heap]
        left += [turn for turns in self._sessions.values() for _, turn in turns]
        self._heap.clear()
        self._sessions.clear()
        return _unsendable(left, reason)


def _unsendable(exchanges: Iterable[Exchange], reason: str) -> tuple[Exchange, ...]:
    found = tuple(exchanges)
    for exchange in found:
        exchange.error, exchange.not_sent_reason = "not_sent", reason
    return found
