"""Who gets in: reservation, watermark, bounded overtaking in the engine; queue caps in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from fake_engine import STALL, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Engine, running
from test_processes import until_running
from test_scheduler import CountingRunner

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.sequence import EngineStats, SamplingParams
from engine.waiting_room import MAX_RETRY_S, RATE_WINDOW_S, WaitingRoom

BLOCK = 4


def engine_of(num_blocks: int, **changes: Any) -> tuple[LLMEngine, CountingRunner]:
    values = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "block_size": BLOCK, **changes}
    runner = CountingRunner(EngineConfig(model="none", **values), num_blocks)
    return LLMEngine(runner.config, runner), runner


def add(engine: LLMEngine, name: str, prompt: int, output: int = 4) -> None:
    engine.add(name, [1] * prompt, SamplingParams(max_tokens=output, ignore_eos=True))


WATERMARKS = [
    # A cache of 20 pages, 11 of them taken or promised: (the case, watermark, prompt of the second, does it get in)
    ("without a watermark it fits", 0.0, 35, True),
    ("five pages must stay free, it would leave none", 0.25, 35, False),
    ("five pages must stay free and do", 0.25, 15, True),
]


@pytest.mark.parametrize(
    ("watermark", "prompt", "gets_in"), [w[1:] for w in WATERMARKS], ids=[w[0] for w in WATERMARKS]
)
def test_the_watermark_stays_free(watermark: float, prompt: int, gets_in: bool) -> None:
    engine, _ = engine_of(20, watermark=watermark)
    add(engine, "first", 40)
    add(engine, "second", prompt)
    engine.step()
    assert engine.begun == ["first", "second"][: 1 + gets_in]


def test_a_request_of_the_whole_cache_gets_in_when_nothing_runs() -> None:
    engine, _ = engine_of(20, watermark=0.5)
    add(engine, "whole", 76)
    engine.step()
    assert engine.begun == ["whole"]


@settings(max_examples=200)
@given(
    skip=st.integers(0, 4),
    seqs=st.integers(1, 6),
    requests=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 9)), min_size=2, max_size=25),
)
def test_nobody_is_overtaken_more_often_than_allowed(skip: int, seqs: int, requests: list[tuple[int, int]]) -> None:
    engine, _ = engine_of(20, max_skip_ahead=skip, max_num_seqs=seqs)
    for index, (prompt, output) in enumerate(requests):
        add(engine, str(index), prompt, output)
    begun: list[int] = []
    while engine.has_work():
        engine.step()
        begun += map(int, engine.begun)
    assert sorted(begun) == list(range(len(requests)))
    for place, request in enumerate(begun):
        assert sum(earlier > request for earlier in begun[:place]) <= skip


def test_a_small_request_may_pass_one_that_does_not_fit() -> None:
    engine, _ = engine_of(20, max_skip_ahead=1)
    add(engine, "first", 40, 30)
    for name, prompt in (("large", 60), ("small", 4), ("smaller", 3)):
        add(engine, name, prompt)
    engine.step()
    assert engine.begun == ["first", "small"]


CAPS = [
    # the case, settings, running, waiting, tokens of each in the room, tokens of the newcomer, kind of refusal
    ("no caps", {}, 4, 9, [100] * 9, 5000, None),
    ("places are free", {"max_queued_requests": 0}, 3, 0, [], 10, None),
    ("a burst fills the free places", {"max_queued_requests": 0}, 1, 0, [9, 9], 10, None),
    ("and no more", {"max_queued_requests": 0}, 1, 0, [9, 9, 9], 10, "requests"),
    ("one may wait", {"max_queued_requests": 1}, 4, 0, [], 10, None),
    ("one waits", {"max_queued_requests": 1}, 4, 1, [9], 10, "requests"),
    ("seats are free but what waits does not fit the cache", {"max_queued_requests": 1}, 1, 1, [9], 10, "requests"),
    ("tokens below the cap", {"max_queued_tokens": 50}, 4, 1, [30], 20, None),
    ("tokens above the cap", {"max_queued_tokens": 50}, 4, 1, [30], 21, "tokens"),
    ("an empty queue takes any length", {"max_queued_tokens": 50}, 4, 0, [], 500, None),
]


@pytest.mark.parametrize(
    ("caps", "running", "waiting", "room", "tokens", "kind"), [row[1:] for row in CAPS], ids=[row[0] for row in CAPS]
)
def test_queue_caps(
    caps: dict[str, int], running: int, waiting: int, room: list[int], tokens: int, kind: str | None
) -> None:
    config = EngineConfig(model="none", max_num_seqs=4, **caps)
    waiting_room = WaitingRoom()
    for index, prompt_tokens in enumerate(room):
        waiting_room.enter(str(index), prompt_tokens)
    refusal = waiting_room.refusal(config, EngineStats(running=running, waiting=waiting), tokens)
    assert (refusal and refusal.kind) == kind


def test_retry_after_follows_the_recent_rate() -> None:
    now = [100.0]
    room = WaitingRoom(lambda: now[0])
    now[0] += 10
    for index in range(5):  # five in ten seconds
        room.enter(str(index), 1)
        room.begin(str(index))
    for index in range(5, 13):
        room.enter(str(index), 1)
    assert room.retry_after() == 16
    now[0] += RATE_WINDOW_S + 1
    assert room.retry_after() == MAX_RETRY_S, "nothing has begun for long"
    for index in range(5, 13):
        room.leave(str(index))
    assert room.retry_after() == 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def engine(checkpoint: Path) -> Iterator[Engine]:
    """The fake step loop runs whatever it is given, so one seat and no queue: a second request is one too many."""
    with running({"model": str(checkpoint), "max_num_seqs": 1, "max_queued_requests": 0}, fake=True) as process:
        yield process


@pytest.fixture
async def http(engine: Engine) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(engine.url) as session:
        yield session


async def test_a_refused_request_gets_429_and_never_reaches_the_engine(
    engine: Engine, http: aiohttp.ClientSession
) -> None:
    held = asyncio.create_task(http.post("/v1/completions", json={"prompt": [STALL], "max_tokens": 9}))
    await until_running(http, 1)
    async with engine.client() as client:
        with pytest.raises(openai.RateLimitError, match="the queue is full: 0 requests wait") as caught:
            await client.completions.create(model="", prompt=[10], extra_body={"model": None})
    assert int(caught.value.response.headers["Retry-After"]) >= 1
    assert caught.value.body == {
        "message": "the queue is full: 0 requests wait, max_queued_requests is set to that",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    async with http.post("/score", json={"items": [{"prompt": [10], "target": [11]}]}) as response:
        assert response.status == 429
    async with http.get("/metrics") as response:
        text = await response.text()
    assert 'servetune:request_refused_total{limit="requests"} 2.0' in text
    assert "servetune:num_requests_running 1.0" in text
    held.cancel()
    await until_running(http, 0)
    async with http.post("/v1/completions", json={"prompt": [10], "max_tokens": 1}) as response:
        assert response.status == 200
