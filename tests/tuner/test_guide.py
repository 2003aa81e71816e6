"""A study with the simulator beside it: what it proposes is measured first, and it is switched off when it errs."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import checkpoint
from test_study import Log

from engine.profile import Profile
from engine.step_model import StepModel
from search_spaces.space import key
from tests.fakes import FakeTestbed, make_spec
from tuner import guide
from tuner.errors import LaunchError
from tuner.plan import Plan
from tuner.prediction import Capacity
from tuner.results import load_results
from tuner.screening import Trust
from tuner.search import ARM
from tuner.serving.config import ServingConfig
from tuner.simulation import Simulator
from tuner.store import Store
from tuner.study import run_study

TOKENIZER = Path(__file__).parents[2] / "engine" / "mini" / "mini"


@pytest.fixture(autouse=True)
def few_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a second later: a lot has as many predictions on a slow machine as on a fast one."""
    monkeypatch.setattr(guide, "time", SimpleNamespace(process_time=itertools.count().__next__))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "study.db") as store:
        yield store


def study(directory: Path, trials: int, screened: int = 3) -> Any:
    budget = {"trials": trials, "startup_trials": 4, "finalists": 0, "examine": False, "plateau": False}
    spec = make_spec(directory, budget=budget | {"screened": screened})
    checkpoint(directory / "model")
    shutil.copy(TOKENIZER / "tokenizer.json", directory / "model")
    return spec


def profiled(**steps: float) -> Profile:
    """Seconds of a step by KV dtype. More seats serve more then, as the fake testbed has it."""
    return Profile("float32", {f"model/auto/{name}": StepModel((s, *[0.0] * 8)) for name, s in steps.items()})


def quick(plan: Plan) -> Profile:
    return profiled(auto=0.2, int8=0.1)


def test_what_it_proposes_is_measured_after_the_baseline(tmp_path: Path, store: Store) -> None:
    asked: list[Plan] = []

    def profiler(plan: Plan) -> Profile:
        asked.append(plan)
        return profiled(auto=0.2, int8=0.1)

    spec, log = study(tmp_path, 4), Log()
    run_study(spec, store, FakeTestbed(), log, {}, resume=False, first=[{"max_num_seqs": 2, **AUTO}], profiler=profiler)
    results = load_results(store, "fake")
    assert len(asked) == 1 and "profile" in log.begun
    assert any("simulated" in note and "3 are measured next" in note for note in log.notes)
    _, given, *proposed = (trial.knobs for trial in results.trials)
    assert given["max_num_seqs"] == 2 and len(proposed) == 3
    assert all(knobs["kv_cache_dtype"] == "int8" for knobs in proposed), "which takes half the time"


def test_what_forgets_is_not_proposed_for_its_speed_again(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulator knows no quality: a window of 64 is the fastest, and its first trial misses the floor."""

    def capacity(simulator: Simulator, config: ServingConfig, *rest: Any) -> Capacity:
        dtype, window = config.values["kv_cache_dtype"], config.values["kv_window"]
        scale = 7.0 if window == 64 else 6.5 if dtype == "int8" else 5.0
        return Capacity(scale, scale, 1)

    monkeypatch.setattr(guide, "capacity", capacity)
    run_study(
        study(tmp_path, 4), store, FakeTestbed(), Log(), {}, resume=False, profiler=lambda plan: profiled(auto=0.2)
    )
    _, first, *later = (trial.knobs for trial in load_results(store, "fake").trials)
    assert first["kv_window"] == 64
    assert all(knobs["kv_window"] != 64 for knobs in later[:2])


def test_a_resumed_study_simulates_nothing(tmp_path: Path, store: Store) -> None:
    def never(plan: Plan) -> Profile:
        raise AssertionError("profiled again")

    spec, first = study(tmp_path, 3), Log(stop_at="trial 2 (2/3)")
    with pytest.raises(KeyboardInterrupt):
        run_study(
            spec, store, FakeTestbed(), first, {}, resume=False, profiler=lambda plan: profiled(auto=0.2, int8=0.1)
        )
    run_study(spec, store, FakeTestbed(), Log(), {}, resume=True, profiler=never)
    assert len(load_results(store, "fake").trials) == 1 + 3 + 1  # the one that was interrupted was asked again


def test_a_study_that_was_stopped_before_its_first_proposal_profiles_and_keeps_what_was_given(
    tmp_path: Path, store: Store
) -> None:
    def interrupted(plan: Plan) -> Profile:
        raise KeyboardInterrupt

    spec, given = study(tmp_path, 4), {"max_num_seqs": 2, **AUTO}
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, store, FakeTestbed(), Log(), {}, False, [given], interrupted)
    log = Log()
    run_study(spec, store, FakeTestbed(), log, {}, True, profiler=lambda plan: profiled(auto=0.2, int8=0.1))
    assert dict(load_results(store, "fake").trials[1].knobs) == given
    assert any("3 are measured next" in note for note in log.notes)


@pytest.mark.parametrize(
    "profiler",
    [pytest.param(error, id=type(error).__name__) for error in (LaunchError("silence"), ValueError("steps"))],
)
def test_a_study_goes_on_without_a_profile_and_says_so(tmp_path: Path, store: Store, profiler: Exception) -> None:
    def failing(plan: Plan) -> Profile:
        raise profiler

    log = Log()
    run_study(study(tmp_path, 2), store, FakeTestbed(), log, {}, resume=False, profiler=failing)
    assert f"nothing is simulated: {profiler}" in log.notes
    assert len(load_results(store, "fake").trials) == 3


def test_no_configuration_is_proposed_twice(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given is not proposed too, nor is what was proposed while it still waits."""
    with Store(tmp_path / "alone.db") as alone:
        run_study(study(tmp_path, 1), alone, FakeTestbed(), Log(), {}, resume=False, profiler=quick)
        best = dict(load_results(alone, "fake").trials[1].knobs)
    monkeypatch.setattr(guide, "trust", lambda ours, theirs: Trust(1.0, len(ours), len(ours) >= 2 or None))
    log = Log()
    run_study(study(tmp_path, 6), store, FakeTestbed(), log, {}, resume=False, first=[best], profiler=quick)
    assert sum("simulated" in note for note in log.notes) == 2
    trials = load_results(store, "fake").trials
    assert len({key(trial.knobs) for trial in trials}) == len(trials) == 7


def test_it_has_no_say_any_more_once_it_was_judged(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three proposals two are enough for a verdict; the search's own say which arm they are of."""
    monkeypatch.setattr(guide, "trust", lambda ours, theirs: Trust(0.1, len(ours), False if len(ours) >= 2 else None))
    run_study(study(tmp_path, 5), store, FakeTestbed(), Log(), {}, resume=False, profiler=quick)
    arms = [trial.user_attrs.get(ARM) for trial in store.optuna_trials("fake")[1:]]
    assert [arm is None for arm in arms] == [True, True, False, False, False]


def test_it_is_switched_off_aloud_when_it_errs(tmp_path: Path, store: Store) -> None:
    """It takes int8 to be slow and seats to be of no use; the testbed has it the other way round."""
    slow = Profile("float32", {f"model/auto/{n}": StepModel((0.0, 0.0, s, *[0.0] * 6)) for n, s in SLOW.items()})
    log = Log()
    run_study(study(tmp_path, 13), store, FakeTestbed(), log, {}, resume=False, profiler=lambda plan: slow)
    said = [note for note in log.notes if "not followed any further" in note]
    assert len(said) == 1 and "with 12 measured trials, 0.8 needed" in said[0]
    assert sum("simulated" in note for note in log.notes) == 1


AUTO = {"kv_cache_dtype": "auto", "kv_window": None}
SLOW = {"auto": 0.01, "int8": 0.5}
