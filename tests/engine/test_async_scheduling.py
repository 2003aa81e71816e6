"""Steps in flight as bookkeeping: the batches, counters and tokens of an engine that waits, and no page lost."""

from __future__ import annotations

import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_runner import LatePending, PagedRunner, check_pages
from test_itl_target import SLOW, TimedRunner

from engine.config import EngineConfig
from engine.core import serve
from engine.framing import Connection, FrameSplitter, pack
from engine.in_flight import needs_host
from engine.llm_engine import LLMEngine
from engine.messages import Abort, Add, FromEngine, Outputs
from engine.runner import RowResult
from engine.scheduler import ScheduledSequence
from engine.sequence import ListedTokens, SamplingParams, Sequence, SequenceOutput
from engine.step_log import CountedRunner, LoggedEngine, TimedStep, read_step_log

Request = tuple[int, list[int], SamplingParams, int | None]
"""The call before which it arrives; prompt; parameters; the call before which it is aborted."""


def engine_of(overlap: bool, blocks: int, **changes: Any) -> tuple[LLMEngine, PagedRunner]:
    values = {"max_num_seqs": 4, "max_num_batched_tokens": 24, "block_size": 4, **changes}
    config = EngineConfig(model="none", async_scheduling=overlap, **values)
    runner = PagedRunner(config, blocks)
    return LLMEngine(config, runner), runner


def calls(engine: LLMEngine, requests: list[Request]) -> Iterator[tuple[list[SequenceOutput], list[str]]]:
    """Outputs and `begun` of each call of `step`, the pages held to what the tables say after each."""
    left = max(at for at, *_ in requests) + 1
    call = 0
    while call < left or engine.has_work():
        for index, (at, prompt, params, abort_at) in enumerate(requests):
            if at == call:
                try:
                    engine.add(str(index), prompt, params, priority=index % 3, tenant=str(index % 2))
                except ValueError as error:
                    assert "pages" in str(error)
            if abort_at == call:
                engine.abort(str(index))
        yield (engine.step(), engine.begun) if engine.has_work() else ([], [])
        check_pages(engine)
        call += 1
        assert call < 3000, "every request ends"


def told(engine: LLMEngine, requests: list[Request]) -> dict[str, tuple[list[int], list[str]]]:
    """Tokens and finish reasons of each request."""
    found: defaultdict[str, tuple[list[int], list[str]]] = defaultdict(lambda: ([], []))
    for outputs, _ in calls(engine, requests):
        for output in outputs:
            tokens, reasons = found[output.request_id]
            assert not reasons, "nothing comes after the end"
            tokens += output.tokens
            reasons += [output.finish_reason] if output.finish_reason else []
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)
    return found


def plain(max_tokens: int, **changes: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, **changes)


configs = st.fixed_dictionaries(
    {
        "max_num_seqs": st.integers(1, 5),
        "max_num_batched_tokens": st.integers(5, 40),
        "prefill_chunk_size": st.none() | st.integers(1, 12),
        "block_size": st.sampled_from([1, 2, 4]),
        "kv_window": st.none() | st.integers(1, 20),
        "kv_sink_tokens": st.integers(0, 5),
        "enable_prefix_caching": st.booleans(),
        "scheduling_policy": st.sampled_from(["fcfs", "priority", "fair"]),
        "max_skip_ahead": st.integers(0, 2),
        "watermark": st.sampled_from([0.0, 0.2]),
    }
)
prompts = st.builds(
    lambda beginning, shared, own: [beginning + 10] * shared + list(range(20, 20 + own)),
    st.integers(0, 1), st.integers(0, 20), st.integers(1, 6),
)  # fmt: skip
ends = st.builds(plain, st.integers(1, 15))
stops = st.builds(
    lambda most, token: SamplingParams(max_tokens=most, stop_token_ids=(token,)), st.integers(1, 15), st.integers(0, 4)
)
"""The fake model says 0 to 4."""
needy = st.builds(
    lambda most, change: plain(most, **change),
    st.integers(1, 8),
    st.sampled_from([{"logprobs": True}, {"presence_penalty": 0.1}, {"logit_bias": ((3, 1.0),)}]),
)
forced = st.builds(lambda count: plain(count, forced=tuple(range(30, 30 + count))), st.integers(1, 12))


def traffic(params: st.SearchStrategy[SamplingParams], aborts: st.SearchStrategy[int | None]) -> Any:
    return st.lists(st.tuples(st.integers(0, 12), prompts, params, aborts), min_size=1, max_size=10)


@settings(max_examples=150)
@given(values=configs, requests=traffic(ends, st.none()), blocks=st.integers(6, 30))
def test_every_call_schedules_what_it_would_if_it_waited(
    values: dict[str, Any], requests: list[Request], blocks: int
) -> None:
    """Where nothing but its last allowed token ends a request, all is known beforehand."""
    (waiting, runner), (ahead, other) = (engine_of(overlap, blocks, **values) for overlap in (False, True))
    wanted, found = ([(*call, engine.stats()) for call in calls(engine, requests)] for engine in (waiting, ahead))
    assert other.batches == runner.batches
    for (_, begun, stats), (_, other_begun, other_stats) in zip(wanted, found, strict=False):
        assert other_begun == begun and other_stats == stats, "after each call, not only in the end"
    flat = [[output for outputs, *_ in played for output in outputs] for played in (wanted, found)]
    assert flat[0] == flat[1], "the same outputs in the same order, each a call later"


@settings(max_examples=250)
@given(
    values=configs,
    requests=traffic(st.one_of(ends, stops, stops, needy, forced), st.none() | st.integers(0, 25)),
    blocks=st.integers(6, 30),
)
def test_tokens_are_those_of_an_engine_that_waits_and_no_page_is_lost(
    values: dict[str, Any], requests: list[Request], blocks: int
) -> None:
    wanted, found = (told(engine_of(overlap, blocks, **values)[0], requests) for overlap in (False, True))
    for index, (_, _, _, abort_at) in enumerate(requests):
        one, other = wanted[str(index)], found[str(index)]
        if abort_at is None or (one[1] and other[1]):
            assert one == other
        else:  # an abort cuts both off somewhere
            length = min(len(one[0]), len(other[0]))
            assert one[0][:length] == other[0][:length]


class Played:
    """An engine with a step in flight, call by call."""

    def __init__(self, blocks: int = 40, **changes: Any) -> None:
        self.engine, self.runner = engine_of(True, blocks, **changes)

    def step(self) -> list[tuple[str, tuple[int, ...], str | None]]:
        outputs = [(output.request_id, output.tokens, output.finish_reason) for output in self.engine.step()]
        check_pages(self.engine)
        return outputs

    def batch(self) -> list[str]:
        """Who is in the step launched last."""
        return [name for name, _, _ in self.runner.batches[-1]]

    def tokens(self, params: SamplingParams) -> list[int]:
        """What an engine that waits says to the prompt of these tests."""
        return told(engine_of(False, 40)[0], [(0, PROMPT, params, None)])["0"][0]


PROMPT = [5, 6, 7]


def test_tokens_come_a_call_later_while_the_next_step_runs() -> None:
    play = Played()
    play.engine.add("a", PROMPT, plain(2))
    first, second = play.tokens(plain(2))
    assert play.step() == [] and play.engine.begun == ["a"] and play.runner.steps == 1
    assert play.step() == [("a", (first,), None)] and play.engine.begun == [] and play.runner.steps == 2
    assert play.engine.has_work() and play.engine.stats().blocks_free == 40, "its pages went with its last launch"
    assert play.step() == [("a", (second,), "length")] and play.runner.steps == 2
    assert not play.engine.has_work()


def test_a_stop_token_costs_one_row_whose_result_is_dropped() -> None:
    play = Played()
    stop = play.tokens(plain(9))[1]
    assert play.tokens(plain(9))[0] != stop
    play.engine.add("a", PROMPT, SamplingParams(max_tokens=9, stop_token_ids=(stop,)))
    play.engine.add("b", [9, 9], plain(5))
    found = [play.step() for _ in range(3)]
    assert ("a", (stop,), "stop") in found[2] and play.batch() == ["a", "b"], "it was in the step launched before"
    assert [name for name, _, _ in play.step()] == ["b"] and play.batch() == ["b"]
    assert play.engine.stats().generation_tokens == 2 + 4
    while play.engine.has_work():
        play.step()
    assert play.engine.stats().blocks_free == 40


def test_the_last_allowed_token_costs_no_row() -> None:
    play = Played()
    play.engine.add("a", PROMPT, SamplingParams(max_tokens=1))
    play.engine.add("b", PROMPT, plain(3))
    play.step()
    play.step()
    assert play.batch() == ["b"]


def test_what_is_aborted_in_flight_is_dropped() -> None:
    play = Played()
    for name in "ab":
        play.engine.add(name, PROMPT, plain(9))
    play.step()
    play.engine.abort("a")
    assert play.engine.stats().running == 1
    play.engine.add("a", [8], plain(2))  # another of the same name must not get its token
    assert [name for name, _, _ in play.step()] == ["b"]
    assert sorted(play.step()) == [("a", (play_token([8]),), None), ("b", (play.tokens(plain(2))[1],), None)]


def play_token(prompt: list[int]) -> int:
    return told(engine_of(False, 40)[0], [(0, prompt, plain(1), None)])["0"][0][0]


def test_an_engine_whose_requests_are_all_aborted_has_its_step_to_collect() -> None:
    play = Played()
    play.engine.add("a", PROMPT, plain(9))
    play.step()
    play.engine.abort("a")
    assert play.engine.has_work() and play.step() == []
    assert not play.engine.has_work() and not play.runner.uncollected


def test_a_preempted_sequence_keeps_the_token_that_was_in_flight() -> None:
    play = Played(blocks=5, block_size=1, max_num_seqs=2, max_num_batched_tokens=8)
    play.engine.add("a", [5], plain(4))
    play.engine.add("b", [6], plain(4))
    outputs = [output for _ in range(30) if play.engine.has_work() for output in play.step()]
    assert play.engine.stats().preemptions > 0
    for name, prompt in (("a", [5]), ("b", [6])):
        said = [token for request, tokens, _ in outputs if request == name for token in tokens]
        assert said == told(engine_of(False, 40)[0], [(0, prompt, plain(4), None)])["0"][0]


def test_reconfiguration_waits_for_requests_but_not_for_dropped_rows() -> None:
    play = Played()
    play.engine.add("a", PROMPT, plain(9))
    play.step()
    with pytest.raises(ValueError, match="1 requests are in flight"):
        play.engine.reconfigure(play.engine.config.updated({"max_num_seqs": 2}))
    play.engine.abort("a")
    play.engine.reconfigure(play.engine.config.updated({"max_num_seqs": 2}))
    assert not play.engine.has_work() and not play.runner.uncollected


def test_a_request_that_needs_the_host_makes_its_steps_wait() -> None:
    play = Played()
    play.engine.add("a", PROMPT, plain(9))
    play.step()
    play.engine.add("b", [8], plain(2, presence_penalty=0.1))
    assert [name for name, _, _ in play.step()] == ["a", "a", "b"], "the step that was in flight, then its own"
    assert [name for name, _, _ in play.step()] == ["a", "b"] and not play.runner.uncollected
    assert play.step() == [] and play.batch() == ["a"], "alone it overlaps again"


def test_where_nothing_is_said_the_runner_decides() -> None:
    for asynchronous, asked, delivered in [(False, None, 1), (True, None, 0), (True, False, 1), (False, True, 0)]:
        config = EngineConfig(model="none", async_scheduling=asked)
        runner = PagedRunner(config, 40)
        runner.asynchronous = asynchronous
        engine = LLMEngine(config, runner)
        engine.add("a", PROMPT, plain(3))
        assert len(engine.step()) == delivered, (asynchronous, asked)


NEEDS = [
    # the case, settings, parameters, whether the host is needed
    ("greedy", {}, {}, False),
    ("sampled", {}, {"temperature": 0.8, "top_p": 0.9, "top_k": 5, "min_p": 0.1}, False),
    ("a window, prefix caching", {"kv_window": 64, "enable_prefix_caching": True}, {}, False),
    ("guesses", {"num_speculative_tokens": 2, "speculative_method": "ngram"}, {}, True),
    ("heavy hitters", {"kv_window": 64, "kv_heavy_tokens": 32}, {}, True),
    ("log-probabilities", {}, {"logprobs": True, "top_logprobs": 3}, False),
    ("a repetition penalty", {}, {"repetition_penalty": 1.1}, True),
    ("a frequency penalty", {}, {"frequency_penalty": 0.1}, True),
    ("a bias", {}, {"logit_bias": ((1, 2.0),)}, True),
    ("a score", {}, {"forced": (1,)}, True),
    ("a score with listings", {}, {"forced": (1,), "listed": ListedTokens(4)}, True),
]


@pytest.mark.parametrize(("values", "params", "needed"), [row[1:] for row in NEEDS], ids=[row[0] for row in NEEDS])
@pytest.mark.parametrize("beside", [[], [SamplingParams()]], ids=["alone", "beside another"])
def test_what_needs_the_host(
    values: dict[str, Any], params: dict[str, Any], needed: bool, beside: list[SamplingParams]
) -> None:
    every = [*beside, SamplingParams(max_tokens=1, **params)]
    step = [ScheduledSequence(Sequence(str(i), (1,), p, i), 0, 1, 0, True) for i, p in enumerate(every)]
    assert needs_host(step, EngineConfig(model="none", **values)) == needed


class DeviceRunner(TimedRunner):
    """A device that computes on its own: a launch takes the host 0.1 ms, a step is there when the device is done."""

    def __init__(self, config: EngineConfig, free: float = 0.0) -> None:
        super().__init__(config, SLOW)
        self.asynchronous, self._free = True, free

    def clock(self) -> float:
        return self.now

    def launch(self, step: list[ScheduledSequence]) -> Any:
        host = self.now + 1e-4
        results = super().launch(step).collect()
        self._free = max(host, self._free) + self.log[-1].seconds
        self.now = host
        return Arriving(results, self, self._free)


class Arriving(msgspec.Struct):
    results: list[RowResult]
    runner: DeviceRunner
    at: float

    def collect(self) -> list[RowResult]:
        self.runner.now = max(self.runner.now, self.at)
        return self.results


@pytest.mark.parametrize("make", [lambda config: TimedRunner(config, SLOW), DeviceRunner], ids=["a CPU", "a device"])
@pytest.mark.parametrize("overlap", [False, True], ids=["waiting", "in flight"])
def test_a_measured_step_is_that_step(make: Callable[[EngineConfig], TimedRunner], overlap: bool) -> None:
    """itl_target learns each step's own time, whichever call it ends in; a launch into an idle device adds to it."""
    config = EngineConfig(model="none", max_num_seqs=4, max_num_batched_tokens=64, itl_target=1.0)
    runner = make(config.updated({"async_scheduling": overlap}))
    engine = LLMEngine(runner.config, runner, clock=lambda: runner.now)
    seen: list[tuple[int, float]] = []
    engine._scheduler.step_times.record = lambda load, seconds: seen.append((load.rows, seconds))  # type: ignore[method-assign]
    for index in range(4):
        engine.add(str(index), [1] * (30 + 50 * index), plain(6 + index))
    while engine.has_work():
        engine.step()
    assert [rows for rows, _ in seen] == [sum(item.rows for item in step) for step in runner.steps]
    into_idle = 1e-4 if runner.asynchronous else 0.0
    for index, (_, seconds) in enumerate(seen):
        own = runner.log[index].seconds + (into_idle if index == 0 or not overlap else 0.0)
        assert seconds == pytest.approx(own, rel=1e-6), index


def test_the_log_of_steps_pairs_each_with_its_own_time(tmp_path: Path) -> None:
    records = []
    for overlap in (False, True):
        config = EngineConfig(model="none", max_num_batched_tokens=64, async_scheduling=overlap)
        runner, log = DeviceRunner(config), tmp_path / str(overlap)
        with log.open("wb") as file:
            engine = LoggedEngine(config, CountedRunner(runner, config, "float32", file), file, runner.clock)
            for index in range(3):
                engine.add(str(index), [1] * (30 + 50 * index), plain(5 + index))
            while engine.has_work():
                engine.step()
        steps = [record for record in read_step_log(log) if isinstance(record, TimedStep)]
        assert [step.counts[1] for step in steps] == [sum(item.rows for item in step) for step in runner.steps]
        for index, (step, ran) in enumerate(zip(steps, runner.log, strict=True)):
            own = ran.seconds + (1e-4 if index == 0 or not overlap else 0.0)
            assert step.seconds == pytest.approx(own, rel=1e-6), index
        records.append([step.counts for step in steps])
    assert records[0] == records[1]


class Observed(PagedRunner):
    """Notes when steps are launched and collected."""

    def __init__(self, config: EngineConfig, blocks: int, sent: list[str]) -> None:
        super().__init__(config, blocks)
        self.events = sent

    def launch(self, step: list[ScheduledSequence]) -> LatePending:
        self.events.append("launch")
        return super().launch(step)


class NotedConnection(Connection):
    events: list[str]

    def send(self, message: FromEngine) -> None:
        if isinstance(message, Outputs) and message.outputs:
            self.events.append("send")
        super().send(message)


def test_the_loop_sends_a_steps_outputs_while_the_next_one_runs() -> None:
    events: list[str] = []
    config = EngineConfig(model="none", async_scheduling=True)
    ours, theirs = socket.socketpair()
    connection = NotedConnection(theirs)
    connection.events = events
    engine = LLMEngine(config, Observed(config, 40, events))

    def run() -> None:
        with theirs, pytest.raises(EOFError):
            serve(engine, connection)

    thread = threading.Thread(target=run)
    thread.start()
    ours.sendall(pack(Add("a", PROMPT, plain(3))) + pack(Abort("nobody")))
    splitter, tokens, reason = FrameSplitter(), list[int](), None
    while reason is None:
        for body in splitter.feed(ours.recv(1 << 16)):
            message = msgspec.msgpack.decode(body, type=FromEngine)
            assert isinstance(message, Outputs)
            for output in message.outputs:
                tokens, reason = [*tokens, *output.tokens], output.finish_reason
    ours.close()
    thread.join()
    assert tokens == told(engine_of(False, 40)[0], [(0, PROMPT, plain(3), None)])["0"][0]
    assert events == ["launch", "launch", "send", "launch", "send", "send"]
    assert not engine.has_work()
