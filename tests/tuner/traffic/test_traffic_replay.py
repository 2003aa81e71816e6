"""The replay is open loop: the server's pace changes what is recorded, never what is sent when."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes import PATIENCE
from tuner.traffic.replay import Progress, replay
from tuner.traffic.trace import Request


def requests(*arrivals: float, output_tokens: int = 4) -> list[Request]:
    return [
        Request(f"r{i}", at, "acme", "chat", f"prompt {i}", max_tokens=8, output_tokens=output_tokens)
        for i, at in enumerate(arrivals)
    ]


async def test_every_request_is_answered_and_recorded_in_trace_order(server: Any) -> None:
    result = await replay(requests(0.1, 0.0, 0.05), server.url, "mini", token_ids=True)
    assert [record.request_id for record in result.records] == ["r1", "r2", "r0"]
    assert [record.scheduled for record in result.records] == [0.0, 0.05, 0.1]
    assert all(record.error is None and record.output_tokens == 4 for record in result.records)
    assert all(record.sent is not None and record.sent >= record.scheduled for record in result.records)
    assert result.stopped is None
    assert result.duration == 0.1


async def test_time_scale_divides_the_arrivals_and_the_duration(server: Any) -> None:
    result = await replay(requests(0.0, 0.4), server.url, "mini", time_scale=4.0, span=1.0)
    assert [record.scheduled for record in result.records] == [0.0, 0.1]
    assert result.duration == 0.25


async def test_a_stalled_answer_delays_no_later_send(server: Any, script: Any) -> None:
    """The first answer waits until every other request has come: a closed loop would never get there."""
    all_came = asyncio.Event()

    async def stall() -> None:
        await asyncio.wait_for(all_came.wait(), PATIENCE)

    def answer(body: dict[str, Any]) -> Any:
        if len(server.seen) == 20:
            all_came.set()
        return script(wait=stall) if body["prompt"] == "prompt 0" else script()

    server.script = answer
    result = await replay(requests(*(0.01 * i for i in range(20))), server.url, "mini", drain_timeout=PATIENCE)
    assert [record.error for record in result.records] == [None] * 20
    stalled = result.records[0]
    assert all(record.sent is not None and record.sent < stalled.token_times[0] for record in result.records)
    # Its wait counts from its own scheduled arrival.
    assert stalled.token_times[0] - stalled.scheduled >= 0.19


async def test_unfinished_requests_time_out_after_the_drain_and_keep_their_tokens(
    server: Any, script: Any, leap: Callable[[float], None]
) -> None:
    hanging = asyncio.Event()

    async def forever(number: int) -> None:
        if number == 2:
            hanging.set()
            await asyncio.Event().wait()

    def end_of_the_drain(progress: Progress) -> None:
        if hanging.is_set() and progress.finished == 1:
            leap(PATIENCE)

    server.script = lambda body: script(between=forever) if body["prompt"] == "prompt 1" else script()
    result = await replay(requests(0.0, 0.02), server.url, "mini", drain_timeout=PATIENCE, on_progress=end_of_the_drain)
    done, hung = result.records
    assert done.error is None
    assert (hung.error, hung.output_tokens, hung.expected_tokens) == ("timeout", 2, 4)
    assert len(hung.token_times) == 2
    assert hung.finish_reason is None


async def test_stop_ends_the_replay_with_its_reason(server: Any, script: Any) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    def hopeless(progress: Progress) -> str | None:
        asked.append((progress.offered, progress.finished, progress.total))
        return "hopeless" if progress.finished >= 1 else None

    asked: list[tuple[int, int, int]] = []
    server.script = lambda body: script(wait=forever) if body["prompt"] == "prompt 1" else script()
    result = await replay(requests(0.0, 0.01, 3600.0), server.url, "mini", stop=hopeless)
    assert result.stopped == "hopeless"
    assert [record.error for record in result.records] == [None, "stopped", "not_sent"]
    assert result.records[2].sent is None
    assert result.duration < 3600
    assert asked[-1] == (2, 1, 3)


async def test_progress_is_reported(server: Any, script: Any) -> None:
    reported: list[Progress] = []
    server.script = lambda body: script(first_delay=0.3)
    await replay(requests(0.0, 0.3), server.url, "mini", on_progress=reported.append)
    assert reported
    assert all(0 <= progress.finished <= progress.offered <= progress.total == 2 for progress in reported)


async def test_failures_of_the_server_are_records(closed_port: str) -> None:
    result = await replay(requests(0.0, 0.01), closed_port, "mini")
    assert [record.error for record in result.records] == ["refused", "refused"]


async def test_an_error_of_the_stop_predicate_is_raised_and_closes_everything(server: Any) -> None:
    def broken(progress: Progress) -> str | None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await replay(requests(0.0, 3600.0), server.url, "mini", stop=broken)


async def test_cancelling_closes_the_connections(server: Any, script: Any) -> None:
    gone = asyncio.Event()
    came = asyncio.Event()

    async def until_client_leaves(number: int) -> None:
        came.set()
        await asyncio.sleep(0.01)

    def endless(body: dict[str, Any]) -> Any:
        return script(tokens=100_000, between=until_client_leaves)

    original = server.stream

    async def watched(*arguments: Any) -> Any:
        try:
            return await original(*arguments)
        except ConnectionResetError:
            gone.set()
            raise

    server.script, server.stream = endless, watched
    frozen = gc.get_freeze_count()
    running = asyncio.create_task(replay(requests(0.0, 3600.0), server.url, "mini"))
    await asyncio.wait_for(came.wait(), PATIENCE)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.wait_for(gone.wait(), PATIENCE)
    assert gc.get_freeze_count() == frozen


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
async def test_bad_time_scale_is_a_users_mistake(scale: float) -> None:
    with pytest.raises(ValueError, match="time_scale"):
        await replay(requests(0.0), "http://127.0.0.1:1", "mini", time_scale=scale)


async def test_no_requests_is_a_users_mistake() -> None:
    with pytest.raises(ValueError, match="at least one request"):
        await replay([], "http://127.0.0.1:1", "mini")
