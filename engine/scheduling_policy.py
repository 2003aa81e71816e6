"""Who is next and who gives way: by arrival, by priority, or by the service that each tenant has had.

One order serves both questions: the waiting request of lowest rank is next, the running one of highest rank is the
victim of a preemption.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Protocol

from engine.config import EngineConfig
from engine.sequence import Sequence

Rank = tuple[float, int]

PROMPT_WEIGHT = 1
OUTPUT_WEIGHT = 2
"""Service per prompt token and per output token, the weights of the VTC artifact."""
REMEMBERED_TENANTS = 4096
"""Beyond it the idle tenants of least service are forgotten; the lift would raise them anyway."""


class SchedulingPolicy(Protocol):
    """The waiting requests in their order. counts_service: whether `served` does anything."""

    counts_service: bool

    def __len__(self) -> int: ...

    def rank(self, sequence: Sequence) -> Rank:
        """Lower goes first; no two requests share one."""

    def add(self, sequence: Sequence) -> None:
        """A new request, or a preempted one that returns."""

    def remove(self, sequence: Sequence) -> None:
        """A waiting request that is admitted or aborted."""

    def first(self, count: int) -> list[Sequence]:
        """The next `count` waiting requests in order; fewer when fewer wait."""

    def admitted(self, sequence: Sequence, prompt_tokens: int) -> None:
        """A request runs for the first time and has `prompt_tokens` to compute."""

    def served(self, sequence: Sequence, output_tokens: int) -> None:
        """A running request got `output_tokens`."""


class RankedQueue:
    """Requests in the fixed order of `rank`."""

    counts_service = False

    def __init__(self, rank: Callable[[Sequence], Rank]) -> None:
        self.rank = rank
        self._waiting: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        insort(self._waiting, sequence, key=self.rank)

    def remove(self, sequence: Sequence) -> None:
        _remove(self._waiting, sequence, self.rank)

    def first(self, count: int) -> list[Sequence]:
        return self._waiting[:count]

    def admitted(self, sequence: Sequence, prompt_tokens: int) -> None:
        """Rank does not depend on service."""

    def served(self, sequence: Sequence, output_tokens: int) -> None:
        """Rank does not depend on service."""


class FairQueue:
    """Virtual Token Counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2).

    Each tenant has a counter of the service it got: PROMPT_WEIGHT per prompt token, charged at the first admission,
    and OUTPUT_WEIGHT per output token. The tenant of the lowest counter goes next. A tenant that comes back from
    having nothing in the queue is lifted to the lowest counter among those that wait (to that of the last tenant that
    left, when none waits), so idling saves nothing up.
    """

    counts_service = True

    def __init__(self) -> None:
        self._counters: Counter[str] = Counter()
        self._waiting: dict[str, list[Sequence]] = {}
        self._length = 0
        self._last_left = ""

    def __len__(self) -> int:
        return self._length

    def rank(self, sequence: Sequence) -> Rank:
        return self._counters[sequence.tenant], sequence.arrival

    def add(self, sequence: Sequence) -> None:
        tenant = sequence.tenant
        if tenant not in self._waiting:
            self._lift(tenant)
            self._forget()
            self._waiting[tenant] = []
        insort(self._waiting[tenant], sequence, key=_arrival)
        self._length += 1

    def remove(self, sequence: Sequence) -> None:
        queue = self._waiting[sequence.tenant]
        _remove(queue, sequence, _arrival)
        self._length -= 1
        if not queue:
            del self._waiting[sequence.tenant]
            self._last_left = sequence.tenant

    def first(self, count: int) -> list[Sequence]:
        if count == 1 and self._waiting:
            return [min((queue[0] for queue in self._waiting.values()), key=self.rank)]
        heads = sorted(self._waiting.values(), key=lambda queue: self.rank(queue[0]))
        return list(islice((sequence for queue in heads for sequence in queue), count))

    def admitted(self, sequence: Sequence, prompt_tokens: int) -> None:
        self._counters[sequence.tenant] += PROMPT_WEIGHT * prompt_tokens

    def served(self, sequence: Sequence, output_tokens: int) -> None:
        self._counters[sequence.tenant] += OUTPUT_WEIGHT * output_tokens

    def _lift(self, tenant: str) -> None:
        if self._waiting:
            least = min(self._counters[other] for other in self._waiting)
        else:
            least = self._counters[self._last_left]
        self._counters[tenant] = max(self._counters[tenant], least)

    def _forget(self) -> None:
        if len(self._counters) > REMEMBERED_TENANTS:
            idle = sorted(self._counters.keys() - self._waiting.keys(), key=self._counters.__getitem__)
            for tenant in idle[: len(self._counters) - REMEMBERED_TENANTS // 2]:
                del self._counters[tenant]


def make_policy(config: EngineConfig) -> SchedulingPolicy:
    """The queue that `scheduling_policy` asks for."""
    if config.scheduling_policy == "fair":
        return FairQueue()
    return RankedQueue(_priority if config.scheduling_policy == "priority" else _arrival)


def _arrival(sequence: Sequence) -> Rank:
    return 0, sequence.arrival


def _priority(sequence: Sequence) -> Rank:
    return sequence.priority, sequence.arrival


def _remove(queue: list[Sequence], sequence: Sequence, rank: Callable[[Sequence], Rank]) -> None:
    index = bisect_left(queue, rank(sequence), key=rank)
    assert queue[index] is sequence, "a waiting request is in its queue"
    del queue[index]
