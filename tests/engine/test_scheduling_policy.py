"""Who goes next and who is preempted: by arrival, by priority, by service per tenant."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scheduler import CountingRunner

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.runner import Computed
from engine.scheduler import ScheduledSequence
from engine.scheduling_policy import OUTPUT_WEIGHT, PROMPT_WEIGHT, REMEMBERED_TENANTS, FairQueue
from engine.sequence import SamplingParams, Sequence, SequenceStatus

BLOCK = 4


class ServiceLog(CountingRunner):
    """Measures each tenant's service from the steps alone: a prompt when it first runs, a token when it is made."""

    def __init__(self, config: EngineConfig, num_blocks: int) -> None:
        super().__init__(config, num_blocks)
        self.service: Counter[str] = Counter()
        self.seen: dict[str, Sequence] = {}

    def launch(self, step: list[ScheduledSequence]) -> Computed:
        for item in step:
            sequence = item.sequence
            if sequence.request_id not in self.seen:
                self.seen[sequence.request_id] = sequence
                self.service[sequence.tenant] += PROMPT_WEIGHT * len(sequence.prompt)
            self.service[sequence.tenant] += OUTPUT_WEIGHT * item.samples
        return super().launch(step)

    def waits(self, request_id: str) -> bool:
        return request_id not in self.seen or self.seen[request_id].status is SequenceStatus.WAITING


def config(**changes: Any) -> EngineConfig:
    values = {"max_num_seqs": 8, "max_num_batched_tokens": 32, "block_size": BLOCK}
    return EngineConfig(model="none", **{**values, **changes})


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True)


Arrival = tuple[int, str, int, int]
"""Step, tenant, prompt tokens, output tokens."""


def widest_gap(policy: str, num_blocks: int, arrivals: list[Arrival]) -> tuple[float, float]:
    """The widest gap in service that opened between two tenants while both always had requests waiting; the bound."""
    runner = ServiceLog(config(scheduling_policy=policy), num_blocks)
    engine = LLMEngine(runner.config, runner)
    tenants = sorted({tenant for _, tenant, _, _ in arrivals})
    spans: dict[tuple[str, str], tuple[int, int] | None] = dict.fromkeys(combinations(tenants, 2))
    tenant_of: dict[str, str] = {}
    widest, step = 0, 0
    while engine.has_work() or any(at >= step for at, _, _, _ in arrivals):
        for index, (at, tenant, prompt, output) in enumerate(arrivals):
            if at == step:
                tenant_of[str(index)] = tenant
                engine.add(str(index), [1] * prompt, greedy(output), tenant=tenant)
        engine.step()
        step += 1
        backlogged = {tenant for request_id, tenant in tenant_of.items() if runner.waits(request_id)}
        for pair, span in spans.items():
            difference = runner.service[pair[0]] - runner.service[pair[1]]
            low, high = span or (difference, difference)
            spans[pair] = (min(low, difference), max(high, difference)) if backlogged.issuperset(pair) else None
            widest = max(widest, *(high - low for low, high in [spans[pair] or (0, 0)]))
    longest = max(prompt for _, _, prompt, _ in arrivals)
    return widest, 2 * max(PROMPT_WEIGHT * longest, OUTPUT_WEIGHT * num_blocks * BLOCK)


@settings(max_examples=100)
@given(
    num_blocks=st.integers(6, 14),
    arrivals=st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from("abc"), st.integers(1, 16), st.integers(1, 7)),
        min_size=40,
        max_size=80,
    ),
)
def test_two_backlogged_tenants_stay_within_the_papers_bound(num_blocks: int, arrivals: list[Arrival]) -> None:
    """Theorem 4.4 of the VTC paper: 2 max(w_p L_input, w_q M), M the tokens that fit in the cache."""
    gap, bound = widest_gap("fair", num_blocks, arrivals)
    assert gap <= bound


def test_first_come_first_served_breaks_that_bound() -> None:
    """The flood of one tenant is served before the other's requests: the bound above is not one that anything keeps."""
    arrivals = [(0, "a", 16, 7)] * 40 + [(0, "b", 16, 7)] * 40
    gap, bound = widest_gap("fcfs", 6, arrivals)
    assert gap > bound
    assert widest_gap("fair", 6, arrivals)[0] <= bound


def finishing_order(policy: str, requests: list[tuple[str, int, str]], **changes: Any) -> list[str]:
    """Names in the order in which they finish. requests: name, priority, tenant."""
    runner = CountingRunner(config(scheduling_policy=policy, **changes), 100)
    engine = LLMEngine(runner.config, runner)
    for name, priority, tenant in requests:
        engine.add(name, [1] * 8, greedy(3), priority, tenant)
    finished: list[str] = []
    while engine.has_work():
        finished += [output.request_id for output in engine.step() if output.finish_reason]
    return finished


FLOOD = [("a1", 0, "a"), ("a2", 0, "a"), ("a3", 0, "a"), ("b1", 0, "b"), ("b2", 0, "b")]
ORDERS = [
    ("fcfs takes the earliest", "fcfs", [("x", 5, ""), ("y", -5, ""), ("z", 0, "")], "x y z"),
    ("priority takes the lowest, ties by arrival", "priority", [("x", 5, ""), ("y", 0, ""), ("z", 0, "")], "y z x"),
    ("fair alternates between tenants", "fair", FLOOD, "a1 b1 a2 b2 a3"),
    ("fair ignores priorities", "fair", [("x", 5, "a"), ("y", -5, "a")], "x y"),
    ("fcfs ignores tenants", "fcfs", FLOOD, "a1 a2 a3 b1 b2"),
]


@pytest.mark.parametrize(("policy", "requests", "order"), [row[1:] for row in ORDERS], ids=[row[0] for row in ORDERS])
def test_order_of_service(policy: str, requests: list[tuple[str, int, str]], order: str) -> None:
    assert finishing_order(policy, requests, max_num_seqs=1) == order.split()


def test_an_urgent_prompt_overtakes_a_long_one_that_already_runs() -> None:
    runner = CountingRunner(config(scheduling_policy="priority"), 100)
    engine = LLMEngine(runner.config, runner)
    engine.add("long", [1] * 320, greedy(1), priority=1)
    engine.step()
    engine.add("urgent", [1] * 8, greedy(1), priority=0)
    engine.step()
    assert [(item.sequence.request_id, item.rows) for item in runner.steps[1]] == [("urgent", 8), ("long", 24)]


VICTIMS = [
    # Three requests fill the cache of 6 pages; the first to outgrow its page needs one that another must give up.
    ("fcfs preempts the latest arrival", "fcfs", [("x", 9, "a"), ("y", 0, "a"), ("z", 0, "b")], "z"),
    ("priority preempts the last in rank", "priority", [("x", 9, "a"), ("y", 0, "a"), ("z", 0, "b")], "x"),
    ("of equal priority the latest", "priority", [("x", 0, "a"), ("y", 5, "a"), ("z", 5, "b")], "z"),
    ("fair preempts the tenant that had the most", "fair", [("x", 0, "a"), ("y", 0, "a"), ("z", 0, "b")], "y"),
]


@pytest.mark.parametrize(("policy", "requests", "victim"), [row[1:] for row in VICTIMS], ids=[r[0] for r in VICTIMS])
def test_who_gives_way(policy: str, requests: list[tuple[str, int, str]], victim: str) -> None:
    runner = ServiceLog(config(scheduling_policy=policy), 6)
    engine = LLMEngine(runner.config, runner)
    for name, priority, tenant in requests:
        engine.add(name, [1] * 4, greedy(12), priority, tenant)
    while engine.stats().preemptions == 0:
        engine.step()
    assert [name for name in runner.seen if runner.waits(name)] == [victim]


def test_a_victim_that_was_scheduled_gives_its_rows_back() -> None:
    """Under fair scheduling the victim may come before the sequence that needs its page."""
    runner = ServiceLog(config(scheduling_policy="fair"), 6)
    engine = LLMEngine(runner.config, runner)
    engine.add("greedy", [1] * 4, greedy(12), tenant="a")
    for name in ("light", "lighter"):
        engine.add(name, [1] * 3, greedy(12), tenant=name)
    before = engine.stats().generation_tokens
    while engine.has_work():
        engine.step()
        scheduled = [item.sequence.request_id for item in runner.steps[-1]]
        assert len(set(scheduled)) == len(scheduled)
        assert not [name for name in scheduled if runner.waits(name)]
        before = engine.stats().generation_tokens
    assert before == 36
    assert engine.stats().preemptions > 0


def sequence(arrival: int, tenant: str) -> Sequence:
    return Sequence(str(arrival), (1,) * 10, greedy(5), arrival, tenant=tenant)


def test_idling_saves_nothing_up() -> None:
    """A tenant that returns is lifted to the least of those waiting; without the lift it would go first ten times."""
    queue = FairQueue()
    for arrival in range(20):
        queue.add(sequence(arrival, "busy"))
    for _ in range(10):
        [head] = queue.first(1)
        queue.remove(head)
        queue.admitted(head, 10)
    for arrival in range(20, 30):
        queue.add(sequence(arrival, "idler"))
    order = []
    for _ in range(6):
        [head] = queue.first(1)
        queue.remove(head)
        queue.admitted(head, 10)
        order.append(head.tenant)
    assert Counter(order) == {"busy": 3, "idler": 3}


def test_a_tenant_that_comes_into_an_empty_queue_starts_where_the_last_one_left() -> None:
    queue = FairQueue()
    first, second = sequence(0, "a"), sequence(1, "b")
    queue.add(first)
    queue.remove(first)
    queue.admitted(first, 10)
    queue.add(second)
    assert queue.rank(second) == (10, 1)


def test_tenants_without_number_do_not_fill_the_memory() -> None:
    queue = FairQueue()
    for arrival in range(3 * REMEMBERED_TENANTS):
        request = sequence(arrival, f"tenant {arrival}")
        queue.add(request)
        if arrival:
            queue.remove(request)
            queue.admitted(request, 10)
    assert len(queue._counters) <= REMEMBERED_TENANTS + 1
    assert queue.first(2)[0].tenant == "tenant 0", "those that wait are never forgotten"
