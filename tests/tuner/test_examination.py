"""What each change of a recommendation buys, and what is next to it, through whole studies on the fake testbed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces.space import load_space
from tests.fakes import FakeTestbed, make_spec
from tests.tuner.test_study import Log, auto
from tuner.examination import neighbours, shuffled
from tuner.reasons import cliffs
from tuner.recommend import recommend
from tuner.results import load_results
from tuner.serving.config import ServingConfig
from tuner.serving.testbed import Load
from tuner.store import Store
from tuner.study import run_study
from tuner.traffic.trace import Request

SPACE = {
    "parameters": {
        "max_num_seqs": {"type": "int", "low": 4, "high": 16, "log": True},
        "kv_cache_dtype": {"type": "choice", "choices": ["auto", "int8"]},
        "kv_window": {"type": "choice", "choices": [None, 256]},
        "kv_sink_tokens": {"type": "int", "low": 0, "high": 8, "step": 4, "when": {"kv_window": "not_null"}},
    }
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "study.db") as store:
        yield store


class Interruption:
    """Ctrl-C at the nth call for a purpose."""

    def __init__(self, purpose: str, at: int) -> None:
        self._purpose, self._left = purpose, at

    def __call__(self, config: ServingConfig, purpose: str) -> None:
        self._left -= purpose == self._purpose
        if purpose == self._purpose and not self._left:
            raise KeyboardInterrupt


def studied(
    directory: Path,
    store: Store,
    resume: bool = False,
    fault: Callable[[ServingConfig, str], Exception | None] = lambda config, purpose: None,
    **budget: Any,
) -> FakeTestbed:
    budget = {"trials": 10, "startup_trials": 4, "finalists": 1, "plateau": False, **budget}
    spec = make_spec(directory, budget=budget, traffic=auto(directory), search_space=SPACE)
    testbed = FakeTestbed(fault)
    run_study(spec, store, testbed, Log(), {"machine": "fake"}, resume)
    return testbed


def test_every_change_is_taken_back_and_told(tmp_path: Path, store: Store) -> None:
    testbed = studied(tmp_path, store)
    found = recommend(load_results(store, "fake"))
    assert found.trial is not None
    knobs = found.trial.knobs
    assert (knobs["max_num_seqs"], knobs["kv_cache_dtype"], knobs["kv_window"]) == (16, "int8", 256)
    ablations = [call for call in testbed.calls if call.purpose == "ablation"]
    without = {call.window: call.config.knobs for call in ablations}
    assert without["without kv_window"] == {"max_num_seqs": 16, "kv_cache_dtype": "int8", "kv_window": None}
    assert without["without kv_cache_dtype"]["kv_cache_dtype"] == "auto"
    assert all(call.probes == 0 for call in ablations)
    told = " ".join(found.reasons)
    # The window serves twice as fast, int8 1.5 times: each is measured down the ladder until the rest holds.
    assert "kv_window 256 instead of none: without it the rest does not hold even" in told
    assert "kv_cache_dtype int8 instead of auto: without it" in told
    assert "One step away in any number, at worst" in told and "a cliff is near" in told
    assert re.search(r"With the requests in another order: (9\d|100)% of the requests are good\.", told)


def test_more_load_than_it_is_worth_is_measured_and_told(tmp_path: Path, store: Store) -> None:
    calls = {call.window: call for call in studied(tmp_path, store).calls if call.purpose == "scenario"}
    at = calls["the requests in another order"].time_scale
    assert calls["1.2 times that load"].time_scale == pytest.approx(1.2 * at)
    assert calls["1.5 times that load"].time_scale == pytest.approx(1.5 * at)
    told = " ".join(recommend(load_results(store, "fake")).reasons)
    good = [int(share) for share in re.findall(r"With 1\.[25] times the claimed load: (\d+)% of the requests", told)]
    assert len(good) == 2 and 100 >= good[0] >= good[1]


def test_what_was_examined_is_not_measured_again(tmp_path: Path, store: Store) -> None:
    assert [call for call in studied(tmp_path, store).calls if call.purpose == "scenario"]
    again = studied(tmp_path, store, resume=True)
    assert {call.purpose for call in again.calls} <= {"reference"}


def test_an_interrupted_examination_goes_on_where_it_stopped(tmp_path: Path, store: Store) -> None:
    with Store(tmp_path / "whole.db") as whole:
        calls = [call for call in studied(tmp_path, whole).calls if call.purpose == "ablation"]
        told = recommend(load_results(whole, "fake")).reasons
    with pytest.raises(KeyboardInterrupt):
        studied(tmp_path, store, fault=Interruption("ablation", 2))
    rest = [call for call in studied(tmp_path, store, resume=True).calls if call.purpose == "ablation"]
    assert len(calls) > 3 and [call.time_scale for call in rest] == [call.time_scale for call in calls[1:]]
    assert recommend(load_results(store, "fake")).reasons == told


def test_what_is_worth_another_load_is_examined_at_that(tmp_path: Path, store: Store) -> None:
    """What was measured at another load, before more trials, is no scenario of this one."""
    studied(tmp_path, store)
    results = load_results(store, "fake")
    found = recommend(results)
    assert found.trial is not None
    worse = next(v for v in results.validations if v.window == "next to it: max_num_seqs 8")
    stale = replace(worse, window="1.2 times that load", time_scale=9.0)
    assert cliffs(replace(results, validations=(stale, *results.validations)), found.trial) == cliffs(
        results, found.trial
    )


def test_nothing_is_examined_when_nobody_asked(tmp_path: Path, store: Store) -> None:
    testbed = studied(tmp_path, store, examine=False)
    assert not {call.purpose for call in testbed.calls} & {"ablation", "scenario"}
    told = " ".join(recommend(load_results(store, "fake")).reasons)
    assert "instead of" not in told and "One step away" not in told


def test_neighbours_stay_in_the_space() -> None:
    knobs = {"max_num_seqs": 16, "kv_cache_dtype": "auto", "kv_window": 256, "kv_sink_tokens": 4}
    found = dict(neighbours(load_space(SPACE), knobs))
    assert list(found) == ["max_num_seqs 8", "kv_sink_tokens 0", "kv_sink_tokens 8"]
    assert found["max_num_seqs 8"] == {**knobs, "max_num_seqs": 8}


def test_another_order_keeps_arrivals_and_requests() -> None:
    requests = tuple(Request(f"r{i}", i * 0.5, "t", "c", (i,), 1) for i in range(20))
    load = Load(requests, 10.0, "tune", 1.0, 1.0)
    other = shuffled(load).requests
    assert [(r.id, r.arrival) for r in other] == [(r.id, r.arrival) for r in requests]
    assert sorted(r.prompt for r in other) == sorted(r.prompt for r in requests)
    assert other != requests and shuffled(load).requests == other
