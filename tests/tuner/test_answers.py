"""Answers of known quality: what is to be beaten, where a trial begins, and what is proposed for the front."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.search_race import race
from benchmarks.search_table import load_table
from search_spaces.space import key, load_space
from tests.fakes import FakeTestbed, cases, make_spec
from tests.tuner.search_tables import LADDER, write_table
from tests.tuner.test_search_ruler import FEW, Fixed, ranked
from tests.tuner.test_study import Log
from tuner.answers import STEP, by_key, to_beat
from tuner.proposals import Knobs, Seen, propose
from tuner.results import load_results
from tuner.store import Store
from tuner.study import run_study

FRONT = [(1.0, 1.0), (0.998, 2.0), (0.99, 3.0)]
TO_BEAT = [
    ("the best answers beat their own", 1.0, 1.0),
    ("middling ones beat those and the better", 0.998, 2.0),
    ("the worst beat all", 0.99, 3.0),
    ("less than a step better is not better", 0.998 + STEP / 2, 2.0),
    ("a step better is", 0.998 + STEP, 1.0),
    ("what was never asked has to beat all", None, 3.0),
]


@pytest.mark.parametrize(("quality", "expected"), cases(TO_BEAT))
def test_what_is_to_be_beaten(quality: float | None, expected: float) -> None:
    assert to_beat(quality, FRONT, 0.5) == expected
    assert to_beat(quality, [], 0.5) == 0.5


def test_one_trial_tells_the_quality_of_all_that_answer_alike() -> None:
    trials = [Seen({"kv": "int8"}, 1.0, 0.9, -0.1, 0.2), Seen({"kv": "auto"}, 1.0, 0.0, 0.3, None)]
    found = by_key(trials, lambda knobs: knobs["kv"])
    assert set(found) == {"int8"} and not found["int8"].holds and found["int8"].quality == 0.9


def test_a_trial_that_answers_better_than_the_best_begins_where_its_peers_ended(tmp_path: Path) -> None:
    table = load_table(write_table(tmp_path, knobs=FEW, noise=0.0))
    fast = next(one for one in ranked(table) if one["kv_cache_dtype"] == "int8")
    lossless = next(one for one in ranked(table) if one["kv_cache_dtype"] == "auto")
    baseline, first, second = race(table, Fixed([fast, lossless]), seed=0, trials=2).outcomes
    assert table.capacities[key(lossless)] < first.held, "beaten by the fast one"
    assert second.rungs[0][0] == LADDER[baseline.held] and baseline.held < second.held


SPACE = load_space(
    {
        "parameters": {
            "kv_cache_dtype": {"type": "choice", "choices": ["auto", "int8", "int4"]},
            "max_num_seqs": {"type": "choice", "choices": [1, 2, 4, 8, 16, 32]},
        }
    }
)


def seen(dtype: str, seqs: int, quality: float, floor: float) -> Seen:
    """Capacity grows with the seats; int8 serves forty times as much."""
    capacity = seqs * (40.0 if dtype == "int8" else 1.0)
    rungs = [(capacity / 1.05, -0.15), (capacity * 1.1, 0.3)]
    return Seen({"kv_cache_dtype": dtype, "max_num_seqs": seqs}, capacity, quality, -0.15, floor, rungs)


def proposed(found: list[Seen]) -> Knobs:
    tried = {key(one.knobs) for one in found}
    baseline = {"kv_cache_dtype": "auto", "max_num_seqs": 1}
    return propose("model", SPACE, baseline, found, tried, random.Random(0), lambda k: k["kv_cache_dtype"]).knobs


def test_answers_that_missed_a_floor_are_not_proposed_again() -> None:
    found = [seen("auto", 1, 1.0, -0.1), seen("int8", 1, 0.998, -0.1), seen("int4", 1, 0.9, 0.001)]
    for _ in range(6):
        knobs = proposed(found)
        assert knobs["kv_cache_dtype"] != "int4", "a miss by little is a miss of all that answer alike"
        found.append(seen(knobs["kv_cache_dtype"], knobs["max_num_seqs"], 1.0, -0.1))


def test_the_front_is_explored_once_the_best_is_found() -> None:
    """What is left of int8 is nearer to the best than any lossless one, and will not beat it either; the lossless ones
    beat their own."""
    found = [seen("int8", seqs, 0.99, -0.1) for seqs in (1, 2, 4, 8, 32)]
    found += [seen("auto", seqs, 1.0, -0.1) for seqs in (1, 2, 4)]
    found.append(seen("int4", 1, 0.9, 0.5))
    knobs = proposed(found)
    assert knobs["kv_cache_dtype"] == "auto" and knobs["max_num_seqs"] >= 8, knobs


def test_a_study_shows_what_better_answers_serve_beside_a_faster_best(tmp_path: Path) -> None:
    """Weights of int8 serve half as much again; the lossless ones are tried from where the baseline held."""
    spec = make_spec(
        tmp_path,
        traffic={**make_spec(tmp_path).traffic.model_dump(), "time_scale": "auto"},
        engine={**make_spec(tmp_path).engine.model_dump(), "baseline": {"max_num_seqs": 12}},
        budget={"trials": 2, "startup_trials": 1, "finalists": 0, "examine": False, "sentinel": 0},
        search_space={
            "parameters": {
                "weight_dtype": {"type": "choice", "choices": ["auto", "int8"]},
                "max_num_seqs": {"type": "int", "low": 1, "high": 16},
            }
        },
    )
    first = [{"weight_dtype": dtype, "max_num_seqs": 16} for dtype in ("int8", "auto")]
    with Store(tmp_path / "study.db") as store:
        run_study(spec, store, FakeTestbed(), Log(), {}, resume=False, first=first)
        baseline, fast, lossless = load_results(store, "fake").trials
    assert baseline.time_scale is not None and lossless.time_scale is not None and fast.time_scale is not None
    assert lossless.state == "feasible", "it misses at the load that the fast one holds"
    assert baseline.time_scale < lossless.time_scale < fast.time_scale
