"""Turns of a session follow each other; the same requests reach the server whatever the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes import PATIENCE, cases
from tuner.traffic.exchange import Exchange
from tuner.traffic.replay import replay
from tuner.traffic.schedule import Schedule
from tuner.traffic.trace import Request


def turn(name: str, arrival: float, session: str | None = None, think: float | None = None) -> Request:
    return Request(name, arrival, "t", "c", f"prompt {name}", 3, output_tokens=3, session=session, think_time=think)


def schedule(requests: list[Request], time_scale: float = 1.0) -> tuple[Schedule, dict[str, Exchange]]:
    exchanges = [Exchange(request, request.arrival / time_scale, b"") for request in requests]
    return Schedule(exchanges, time_scale), {exchange.request.id: exchange for exchange in exchanges}


TURNS: list[Any] = [
    # the case, the second turn, time scale, end of the first turn, when the second is due
    ("its think time after the end", turn("b", 9.0, "s", 2.0), 1.0, 5.0, 7.0),
    ("think time is scaled as arrivals are", turn("b", 9.0, "s", 2.0), 4.0, 5.0, 5.5),
    ("no pause", turn("b", 9.0, "s", 0.0), 1.0, 5.0, 5.0),
    ("no think time: at its arrival", turn("b", 9.0, "s"), 1.0, 5.0, 9.0),
    ("no think time: not before the end", turn("b", 9.0, "s"), 2.0, 5.0, 5.0),
]


@pytest.mark.parametrize(("second", "scale", "end", "due"), cases(TURNS))
def test_when_the_next_turn_is_due(second: Request, scale: float, end: float, due: float) -> None:
    plan, exchanges = schedule([turn("a", 0.0, "s"), second], scale)
    assert plan.pop_due(0.0) is exchanges["a"]
    assert not plan.waiting and plan.pop_due(1e9) is None
    exchanges["a"].end = end
    assert plan.ended(exchanges["a"]) == ()
    assert plan.next_time == due == exchanges["b"].scheduled
    assert plan.due_before(due) == 0 and plan.due_before(due + 0.1) == 1


def test_other_requests_do_not_wait_for_a_session() -> None:
    plan, _ = schedule([turn("a", 0.0, "s"), turn("b", 0.1, "s", 0.0), turn("c", 0.2), turn("d", 0.3, "other")])
    due = [exchange.request.id for exchange in iter(lambda: plan.pop_due(1.0), None)]
    assert due == ["a", "c", "d"]


async def test_a_session_is_replayed_turn_by_turn(server: Any, script: Any) -> None:
    server.script = lambda body: script(token_delay=0.02)
    requests = [turn("a", 0.0, "s"), turn("b", 0.01, "s", 0.2), turn("x", 0.02), turn("c", 0.03, "s", 0.2)]
    result = await replay(requests, server.url, "mini", time_scale=2.0)
    records = {record.request_id: record for record in result.records}
    assert [record.error for record in result.records] == [None] * 4
    for earlier, later in (("a", "b"), ("b", "c")):
        # The stream ends a little after its last token.
        assert records[later].scheduled >= records[earlier].token_times[-1] + 0.1
        sent = records[later].sent
        assert sent is not None and sent >= records[later].scheduled
    assert [seen.body["prompt"][-1] for seen in server.seen] == ["a", "x", "b", "c"]
    assert result.duration == records["c"].scheduled


async def test_a_turn_that_fails_ends_its_session(server: Any, script: Any) -> None:
    server.script = lambda body: script(status=503) if body["prompt"] == "prompt b" else script()
    requests = [turn("a", 0.0, "s"), turn("b", 0.01, "s", 0.0), turn("c", 0.02, "s", 0.0), turn("x", 0.1)]
    result = await replay(requests, server.url, "mini")
    assert [record.error for record in result.records] == [None, "http_5xx", "not_sent", None]
    assert [record.not_sent_reason for record in result.records] == [None, None, "http_5xx of b", None]
    assert len(server.seen) == 3


async def test_a_turn_that_never_ends_ends_its_session_at_the_drain_deadline(server: Any, script: Any) -> None:
    server.script = lambda body: script(token_delay=60.0)
    result = await replay([turn("a", 0.0, "s"), turn("b", 0.01, "s", 0.0)], server.url, "mini", drain_timeout=0.3)
    assert [record.error for record in result.records] == ["timeout", "not_sent"]
    assert result.records[1].not_sent_reason == "timeout of a"


async def test_the_drain_deadline_counts_from_the_last_turn(
    server: Any, script: Any, leap: Callable[[float], None]
) -> None:
    async def long(number: int) -> None:
        if number == 1:
            leap(0.7 * PATIENCE)

    server.script = lambda body: script(between=long)
    requests = [turn("a", 0.0, "s"), turn("b", 0.0, "s", 0.1), turn("c", 0.0, "s", 0.1)]
    result = await replay(requests, server.url, "mini", drain_timeout=PATIENCE)
    assert [record.error for record in result.records] == [None] * 3


async def test_every_configuration_gets_the_same_requests(server: Any, script: Any) -> None:
    """Common random numbers: prompt, length and seed do not depend on the server's pace or the time scale."""
    requests = [
        turn("a", 0.0, "s"),
        Request("g", 0.01, "t", "c", (3, 4), 9, output_tokens=5, seed=7, temperature=0.5),
        turn("b", 0.02, "s", 0.0),
    ]
    seen = []
    for pace, scale in ((0.0, 1.0), (0.02, 1.0), (0.0, 3.0)):
        server.script = lambda body, pace=pace: script(token_delay=pace)
        server.seen.clear()
        await replay(requests, server.url, "mini", time_scale=scale, token_ids=True)
        seen.append(sorted(request.raw for request in server.seen))
    assert seen[0] == seen[1] == seen[2]
    bodies = [request.body for request in server.seen]
    assert all(body["ignore_eos"] for body in bodies)
    assert sorted((body["max_tokens"], body.get("seed")) for body in bodies if "seed" in body) == [(5, 7)]
