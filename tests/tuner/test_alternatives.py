"""Labelled alternatives of a recommendation: which trial is the best in what, and what keeps one out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import cases
from tests.tuner.builders import checkpoint
from tests.tuner.test_recommend import BAD_BASELINE, SPEC, study_of, trial_of, validation_of
from tuner.recommend import recommend
from tuner.results import StudyResults, TrialResult
from tuner.serving.adapters import memory
from tuner.serving.config import ServingConfig


def _trial(number: int, goodput: float, quality: float = 1.0, tail: float = 0.1, **changes: Any) -> TrialResult:
    """A feasible trial, of which goodput, quality and tail latency matter."""
    return trial_of(number, goodput, quality=quality, objectives=(goodput, quality, tail), **changes)


def labels(study: StudyResults) -> dict[int, tuple[str, ...]]:
    return {one.trial.number: one.labels for one in recommend(study).alternatives}


BEST = _trial(1, 9.0, quality=0.95, tail=0.3)
CASES: list[tuple[str, tuple[TrialResult, ...], dict[int, tuple[str, ...]]]] = [
    ("alone it is the best in all", (BEST,), {1: ("best quality", "lowest latency")}),
    ("each the best in one thing", (BEST, _trial(2, 5.0, tail=0.3), _trial(3, 4.0, quality=0.95, tail=0.05)),
     {1: (), 2: ("best quality",), 3: ("lowest latency",)}),
    ("one that is the best in two", (BEST, _trial(2, 5.0, tail=0.05)), {1: (), 2: ("best quality", "lowest latency")}),
    ("of equals the recommended one", (BEST, _trial(2, 5.0, quality=0.95, tail=0.3)),
     {1: ("best quality", "lowest latency")}),
    ("equal as shown is equal", (BEST, _trial(2, 5.0, quality=0.95004, tail=0.3)),
     {1: ("best quality", "lowest latency")}),
    ("of equals beside it, the one that serves more", (BEST, _trial(2, 4.0, tail=0.3), _trial(3, 5.0, tail=0.3)),
     {1: ("lowest latency",), 3: ("best quality",)}),
    ("a front of two has no knee", (BEST, _trial(2, 8.0, tail=0.3)), {1: ("lowest latency",), 2: ("best quality",)}),
    ("the knee of three", (BEST, _trial(2, 8.0, quality=0.99, tail=0.3), _trial(3, 4.0, tail=0.3)),
     {1: ("lowest latency",), 2: ("knee",), 3: ("best quality",)}),
    ("the knee looks at the front alone",
     (BEST, _trial(2, 8.0, quality=0.99, tail=0.3), _trial(3, 4.0, tail=0.3), _trial(4, 7.9, quality=0.98, tail=0.3)),
     {1: ("lowest latency",), 2: ("knee",), 3: ("best quality",)}),
    ("what misses an SLO is none", (BEST, _trial(2, 5.0, tail=0.01, margin=-0.1)),
     {1: ("best quality", "lowest latency")}),
]  # fmt: skip


@pytest.mark.parametrize(("trials", "expected"), cases(CASES))
def test_labels(trials: tuple[TrialResult, ...], expected: Mapping[int, tuple[str, ...]]) -> None:
    assert labels(study_of(BAD_BASELINE, *trials)) == expected


def test_the_recommended_one_comes_first_whatever_its_number() -> None:
    study = study_of(BAD_BASELINE, _trial(1, 5.0, tail=0.3), _trial(2, 9.0, quality=0.95, tail=0.3))
    assert [one.trial.number for one in recommend(study).alternatives] == [2, 1]


def test_one_that_missed_when_measured_again_is_none() -> None:
    better = _trial(2, 5.0, tail=0.01)
    held, missed = (validation_of(1, -0.1), validation_of(2, 0.2))
    found = recommend(study_of(BAD_BASELINE, BEST, better, validations=(held, missed)))
    assert [one.trial.number for one in found.alternatives] == [1]
    assert found.alternatives[0].tested
    untested = recommend(study_of(BAD_BASELINE, BEST, better, validations=(held,))).alternatives
    assert [(one.trial.number, one.tested) for one in untested] == [(1, True), (2, False)]


def test_an_abstention_has_none() -> None:
    assert recommend(study_of(BAD_BASELINE, _trial(1, 9.0, margin=-1.0))).alternatives == ()


@pytest.mark.parametrize(
    ("knobs", "smallest"),
    cases(
        [
            ("fewer bytes a key", {1: {"kv_cache_dtype": "auto"}, 2: {"kv_cache_dtype": "int8"}}, 2),
            ("a window", {1: {}, 2: {"kv_window": 64, "max_num_batched_tokens": 64}}, 2),
            ("a smaller pool before smaller keys",
             {1: {"kv_cache_memory_bytes": 1 << 20}, 2: {"kv_cache_dtype": "int8"}}, 1),
            ("a batch takes none", {1: {}, 2: {"max_num_seqs": 4}}, 1),
        ]
    ),
)  # fmt: skip
def test_lowest_memory(tmp_path: Path, knobs: Mapping[int, Mapping[str, Any]], smallest: int) -> None:
    spec = SPEC.model_copy(update={"model": checkpoint(tmp_path)})
    trials = [_trial(number, 10.0 - number, knobs=one) for number, one in knobs.items()]
    found = recommend(dataclasses.replace(study_of(BAD_BASELINE, *trials), spec=spec)).alternatives
    assert [one.trial.number for one in found if "lowest memory" in one.labels] == [smallest]


def test_memory_by_hand(tmp_path: Path) -> None:
    """128 bytes a token of KV in float32 (see checkpoint); 6,880 weights of 4 bytes."""
    settings = {"model": str(checkpoint(tmp_path)), "kv_cache_memory_bytes": 1 << 20, "max_model_len": 100}
    found = memory(ServingConfig("bundled", settings), gpu=False)
    projections = 2 * (16 * 16 + 2 * 8 * 16 + 16 * 16 + 3 * 32 * 16)
    tables, norms = 2 * 64 * 16, 16 + 2 * 2 * 16
    assert found.weights == 4 * (projections + tables + norms)
    assert found.sequence == 112 * 128, "seven pages of sixteen tokens"
    assert found.kv_pool == 1 << 20 and found.total == found.weights + found.kv_pool
    half = memory(ServingConfig("bundled", settings), gpu=True)
    assert half.sequence * 2 == found.sequence


@given(st.permutations([(1, 9.0, 0.95, 0.3), (2, 8.0, 0.99, 0.2), (3, 4.0, 1.0, 0.3), (4, 7.0, 0.97, 0.1)]))
def test_the_order_of_the_trials_changes_nothing(trials: list[tuple[int, float, float, float]]) -> None:
    found = labels(study_of(BAD_BASELINE, *(_trial(*one) for one in trials)))
    assert found == {1: (), 2: ("knee",), 3: ("best quality",), 4: ("lowest latency",)}
