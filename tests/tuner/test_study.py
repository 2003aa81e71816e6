"""A whole study against a testbed in closed form: the order of things, failures, resumption, what may not change."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.fakes import FakeTestbed, cases, make_probes, make_spec
from tuner import search
from tuner.deliver import deliver, export_to
from tuner.errors import ConfigRejected, EngineCrashed, EngineHung, EngineOutOfMemory, LaunchError, ServingError
from tuner.outcome import WORST, Outcome
from tuner.plan import make_plan
from tuner.recommend import held, recommend
from tuner.results import StudyResults, load_results
from tuner.resume import runner_alive
from tuner.scoring.slo import BADNESS_CAP
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement
from tuner.serving.testbed import Load
from tuner.spec import StudySpec
from tuner.store import Store
from tuner.study import run_study

Fault = Callable[[ServingConfig, str], Exception | None]


class Log:
    """A Reporter that remembers, and may end the study when a measurement begins."""

    def __init__(self, stop_at: str = "") -> None:
        self.begun: list[str] = []
        self.ended: dict[int, Outcome] = {}
        self.earlier: dict[int, Outcome] = {}
        self.notes: list[str] = []
        self._stop_at = stop_at

    def begin(self, what: str) -> None:
        if what == self._stop_at:
            raise KeyboardInterrupt
        self.begun.append(what)

    def at(self, time_scale: float) -> None:
        """Not looked at."""

    def resumed(self, earlier: Mapping[int, Outcome]) -> None:
        self.earlier = dict(earlier)

    def trial_ended(self, number: int, outcome: Outcome) -> None:
        self.ended[number] = outcome

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "study.db") as store:
        yield store


def run(
    spec: StudySpec, store: Store, fault: Fault | None = None, log: Log | None = None, resume: bool = False
) -> FakeTestbed:
    testbed = FakeTestbed() if fault is None else FakeTestbed(fault)
    run_study(spec, store, testbed, log or Log(), {"machine": "fake"}, resume)
    return testbed


def states(store: Store) -> list[TrialState]:
    return [trial.state for trial in store.optuna_trials("fake")]


def small(directory: Path, trials: int = 3, **changes: Any) -> StudySpec:
    return make_spec(
        directory, budget={"trials": trials, "startup_trials": 2, "finalists": 1, "examine": False}, **changes
    )


def test_a_study_finds_more_goodput_than_the_baseline(tmp_path: Path, store: Store) -> None:
    testbed = run(make_spec(tmp_path), store)
    results = load_results(store, "fake")
    assert [trial.number for trial in results.trials] == list(range(13))
    assert results.baseline.knobs == {"max_num_seqs": 16, "kv_cache_dtype": "auto", "kv_window": None}
    assert results.baseline.state == "infeasible"
    best = recommend(results).trial
    assert best is not None and best.traffic is not None and results.baseline.traffic is not None
    assert best.traffic.goodput.value > 4 * results.baseline.traffic.goodput.value
    assert best.knobs["kv_window"] != 64
    purposes = [call.purpose for call in testbed.calls]
    assert purposes == [
        "reference", "baseline", *["trial"] * 12,
        "repeat", "holdout", "repeat", "holdout", "recorded_rate", "recorded_rate",
    ]  # fmt: skip
    assert [call.time_scale for call in testbed.calls if call.purpose == "recorded_rate"] == [1.0, 1.0]
    assert {call.window for call in testbed.calls if call.purpose == "holdout"} == {"holdout"}
    assert {(v.trial, v.purpose) for v in results.validations} >= {(0, "holdout"), (best.number, "holdout")}


def test_every_measurement_is_stored_and_carries_its_probes(tmp_path: Path, store: Store) -> None:
    testbed = run(small(tmp_path, trials=6), store)
    measured = store.measurements("fake")
    assert len(measured) == len(testbed.calls) - 1
    asked = {m.measurement.config.knobs.get("kv_window"): len(m.measurement.probes) for m in measured}
    assert asked == {None: 46, 256: 46, 64: 10}, "a window that forgets is hopeless after the first gate"
    assert sum(m.measurement.stopped is None for m in measured) > len(measured) / 2


def test_finalists_are_asked_what_no_trial_is(tmp_path: Path, store: Store) -> None:
    spec = small(tmp_path, trials=6)
    last = [probe | {"id": f"final-{i}", "gate": 2} for i, probe in enumerate(make_probes()[:6])]
    with spec.quality.probes.open("a") as file:
        file.writelines(json.dumps(probe) + "\n" for probe in last)
    run(spec, store)
    counts = {m.measurement.purpose: len(m.measurement.probes) for m in store.measurements("fake")}
    assert (counts["baseline"], counts["repeat"]) == (46, 52)


def test_a_sample_of_the_traffic_is_asked_with_the_references_answers(tmp_path: Path, store: Store) -> None:
    quality = {"probes": "probes.jsonl", "production_sample": 5, "reference_cache": "cache"}
    run(small(tmp_path, trials=1, quality=quality), store)
    (baseline,) = [m.measurement for m in store.measurements("fake") if m.measurement.purpose == "baseline"]
    sample = [record for record in baseline.probes if record.slice == "production"]
    assert len(sample) == 5 and all(record.tokens for record in sample)
    (cached,) = (tmp_path / "cache").iterdir()
    assert cached.stat().st_mode & 0o777 == 0o600
    with Store(tmp_path / "other.db") as other:
        again = run(small(tmp_path, trials=1, quality=quality), other)
    assert "reference" not in [call.purpose for call in again.calls], "another study finds the answers in the cache"


def test_probes_are_asked_once_per_quality_key(tmp_path: Path, store: Store) -> None:
    testbed = run(small(tmp_path, trials=8), store)
    asked = [call.config.knobs for call in testbed.calls if call.purpose != "reference" and call.probes]
    keys = [tuple(knobs.get(name) for name in ("kv_cache_dtype", "kv_window", "kv_sink_tokens")) for knobs in asked]
    assert len(keys) == len(set(keys))


def test_the_reference_is_exact_and_measured_once_for_all_studies(tmp_path: Path, store: Store) -> None:
    settings = {"engine": {"baseline": {"kv_cache_dtype": "int8", "kv_window": 256, "kv_sink_tokens": 4}}}
    first = run(small(tmp_path, trials=1, **settings), store)
    reference = first.calls[0].config.values
    assert (reference["kv_cache_dtype"], reference["kv_window"], reference["num_speculative_tokens"]) == (
        "auto",
        None,
        0,
    )
    second = run(small(tmp_path, trials=1, name="other"), store)
    assert [call.purpose for call in second.calls][0] == "baseline"


def test_constraints_have_the_same_names_in_the_same_order(tmp_path: Path, store: Store) -> None:
    def fault(config: ServingConfig, purpose: str) -> Exception | None:
        return EngineCrashed("boom") if purpose == "trial" and config.knobs["kv_window"] == 64 else None

    run(small(tmp_path, trials=12), store, fault)
    trials = store.optuna_trials("fake")
    assert {tuple(trial.constraints) for trial in trials} == {("quality:recall", "quality:text", "slo:chat")}
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}


def auto(directory: Path) -> dict[str, Any]:
    return {**make_spec(directory).traffic.model_dump(), "time_scale": "auto"}


def scales(testbed: FakeTestbed, purpose: str) -> list[float]:
    return [call.time_scale for call in testbed.calls if call.purpose == purpose]


def test_auto_load_starts_at_the_highest_rung_that_the_baseline_holds(tmp_path: Path, store: Store) -> None:
    log = Log()
    engine = {**make_spec(tmp_path).engine.model_dump(), "baseline": {"kv_cache_dtype": "int8"}}
    testbed = run(small(tmp_path, trials=1, traffic=auto(tmp_path), engine=engine), store, log=log)
    # The fake serves 14.4 requests/s with int8; the trace offers 10. At the recorded rate latency is a 2.7th of its
    # bound: at a slope of 2 that is 3 rungs up. A second replay confirms the miss that bounds the knee.
    assert scales(testbed, "calibration") == [1.0, 1.521, 2.011, 1.749, 1.749]
    assert load_results(store, "fake").time_scale == 1.521
    assert any("1.521 times" in note for note in log.notes)


def test_a_trial_climbs_from_what_the_best_one_holds(tmp_path: Path, store: Store) -> None:
    space = {"parameters": {"kv_cache_dtype": {"type": "choice", "choices": ["auto", "int8"]}}}
    testbed = run(small(tmp_path, trials=2, traffic=auto(tmp_path), search_space=space), store)
    by_dtype: dict[str, list[float]] = {}
    for call in testbed.calls:
        if call.purpose == "trial":
            by_dtype.setdefault(call.config.knobs["kv_cache_dtype"], []).append(call.time_scale)
    # The second trial is a replicate of the first, and begins where that stands.
    assert by_dtype["int8"] == [1.0, 1.15, 1.322, 1.521, 1.749, 1.521, 1.749]
    results = load_results(store, "fake")
    best = recommend(results)
    assert best.trial is not None and best.trial.knobs["kv_cache_dtype"] == "int8"
    assert (best.trial.time_scale, best.trial.missed_scale) == (1.521, 1.749)
    assert (results.baseline.state, results.baseline.time_scale) == ("feasible", 1.0)
    assert "at 1.52x the recorded rate, where the baseline serves 10.00 at 1x." in best.verdict
    again = [trial for trial in results.trials[1:] if trial.knobs["kv_cache_dtype"] == "int8"]
    assert {trial.time_scale for trial in again} == {1.521}


def test_a_load_that_is_given_is_the_only_one(tmp_path: Path, store: Store) -> None:
    testbed = run(small(tmp_path, trials=4), store)
    assert {call.time_scale for call in testbed.calls if call.purpose in ("baseline", "trial", "holdout")} == {4.0}
    assert scales(testbed, "calibration") == []


def test_a_finalist_is_worth_what_it_holds_on_the_held_out_window(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = FakeTestbed.measure

    def harder(testbed: FakeTestbed, config: ServingConfig, load: Load, **asked: Any) -> Measurement:
        slow = replace(config, knobs={**config.knobs, "max_num_seqs": 14})
        return measure(testbed, slow if load.window == "holdout" else config, load, **asked)

    monkeypatch.setattr(FakeTestbed, "measure", harder)
    space = {"parameters": {"kv_cache_dtype": {"type": "choice", "choices": ["auto", "int8"]}}}
    testbed = run(small(tmp_path, trials=1, traffic=auto(tmp_path), search_space=space), store)
    # From what the race lets it claim; a miss is believed when a second replay misses. Then the baseline.
    assert scales(testbed, "holdout") == [1.521, 1.521, 1.322, 1.0, 1.0, 0.87]
    best = recommend(load_results(store, "fake"))
    assert best.deployable and "at 1.32x the recorded rate" in best.verdict
    goodput = next(gain for gain in best.gains if gain.name == "goodput")
    assert goodput.recommended == pytest.approx(13.23, abs=0.01)


def test_a_crash_further_up_leaves_what_was_held(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = FakeTestbed.measure

    def fragile(testbed: FakeTestbed, config: ServingConfig, load: Load, **asked: Any) -> Measurement:
        if load.time_scale > 1.2 and asked["purpose"] == "trial":
            raise EngineCrashed("exit status 4")
        return measure(testbed, config, load, **asked)

    monkeypatch.setattr(FakeTestbed, "measure", fragile)
    space = {"parameters": {"kv_cache_dtype": {"type": "choice", "choices": ["auto", "int8"]}}}
    run(small(tmp_path, trials=1, traffic=auto(tmp_path), search_space=space), store)
    (trial,) = load_results(store, "fake").trials[1:]
    assert (trial.state, trial.time_scale) == ("feasible", 1.15)


def test_a_resumed_trial_climbs_on_from_what_it_held(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = FakeTestbed.measure

    def interrupted(testbed: FakeTestbed, config: ServingConfig, load: Load, **asked: Any) -> Measurement:
        if load.time_scale > 1.2 and asked["purpose"] == "trial":
            raise KeyboardInterrupt
        return measure(testbed, config, load, **asked)

    space = {"parameters": {"kv_cache_dtype": {"type": "choice", "choices": ["auto", "int8"]}}}
    spec = small(tmp_path, trials=2, traffic=auto(tmp_path), search_space=space)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FakeTestbed, "measure", interrupted)
        run(spec, store)
    testbed = run(spec, store, resume=True)
    told = next(
        trial for trial in store.optuna_trials("fake") if trial.number and trial.params == {"kv_cache_dtype": "int8"}
    )
    assert scales(testbed, "trial")[:3] == [1.322, 1.521, 1.749] and told.user_attrs["time_scale"] == 1.521
    assert [scale for scale, _ in told.user_attrs["rungs"]] == [1.0, 1.15, 1.322, 1.521, 1.749]


def test_a_resumed_calibration_keeps_its_steps(tmp_path: Path, store: Store) -> None:
    spec = small(tmp_path, trials=1, traffic=auto(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run(spec, store, log=Log(stop_at="calibration x1.15, again"))
    testbed = run(spec, store, resume=True)
    assert scales(testbed, "calibration") == [1.15]


def test_a_slow_moment_of_the_machine_is_not_taken_for_the_knee(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, replays = FakeTestbed.measure, itertools.count()

    def slow_at_first(testbed: FakeTestbed, config: ServingConfig, load: Load, **asked: Any) -> Measurement:
        slow = replace(config, knobs={**config.knobs, "max_num_seqs": 4})
        return measure(testbed, slow if next(replays) < 1 else config, load, **asked)

    monkeypatch.setattr(FakeTestbed, "measure", slow_at_first)
    testbed = run(small(tmp_path, trials=1, traffic=auto(tmp_path)), store)
    assert scales(testbed, "calibration") == [1.0, 1.0, 1.0, 1.15, 1.15]


def with_seats(directory: Path, baseline: int, most: int) -> StudySpec:
    engine = {**make_spec(directory).engine.model_dump(), "baseline": {"max_num_seqs": baseline}}
    space = {"parameters": {"max_num_seqs": {"type": "int", "low": baseline, "high": most}}}
    return small(directory, trials=6, traffic=auto(directory), engine=engine, search_space=space)


def test_a_baseline_below_the_recorded_rate_is_measured_at_what_it_holds(tmp_path: Path, store: Store) -> None:
    testbed = run(with_seats(tmp_path, 12, 16), store)
    assert scales(testbed, "calibration")[:2] == [1.0, 1.0] and set(scales(testbed, "baseline")) == {0.756}
    results = load_results(store, "fake")
    best = recommend(results)
    assert results.baseline.state == "feasible" and best.deployable
    assert "at 1x the recorded rate, where the baseline serves 7.05 at 0.705x" in best.verdict
    ttft = next(gain for gain in best.gains if gain.name.startswith("chat p95 ttft"))
    assert ttft.name.endswith("at its load") and ttft.baseline and ttft.recommended
    assert not any("replicas" in reason for reason in best.reasons)


def test_what_holds_less_than_the_recorded_rate_is_said_to_need_replicas(tmp_path: Path, store: Store) -> None:
    run(with_seats(tmp_path, 11, 13), store)
    results = load_results(store, "fake")
    best = recommend(results)
    assert best.deployable and "It does not hold the recorded rate: 2 replicas," in " ".join(best.reasons)
    written = [*export_to("kubernetes", results, best, tmp_path), *export_to("helm-values", results, best, tmp_path)]
    said = {path.name: path.read_text() for path in written}
    assert "\n  replicas: 2\n" in said["kubernetes.yaml"] and "replicaCount: 2\n" in said["values.yaml"]


def test_a_baseline_that_holds_no_load_is_no_obstacle(tmp_path: Path, store: Store) -> None:
    testbed = run(with_seats(tmp_path, 8, 16), store)
    assert scales(testbed, "calibration") == [1.0, 1.0, 0.497, 0.497] and scales(testbed, "baseline") == [0.497]
    results = load_results(store, "fake")
    assert results.baseline.state == "infeasible" and recommend(results).deployable


def test_a_hopeless_replay_stops_early_and_says_so(tmp_path: Path, store: Store) -> None:
    traffic = {**make_spec(tmp_path).traffic.model_dump(), "time_scale": 2.0}
    space = {"parameters": {"max_num_seqs": {"type": "int", "low": 1, "high": 2}}}
    engine = {"baseline": {"max_num_seqs": 2}}
    run(small(tmp_path, trials=1, engine=engine, search_space=space, traffic=traffic), store)
    baseline, trial = load_results(store, "fake").trials
    assert (baseline.state, baseline.detail) == ("infeasible", None)
    assert (trial.state, trial.detail) == ("infeasible", "slo_unreachable")
    assert trial.traffic is not None
    chat = trial.traffic.classes["chat"]
    assert chat.offered == 40 and chat.errors["not_sent"] > 0
    assert trial.traffic.duration == 2.0
    assert trial.constraints["slo:chat"] == BADNESS_CAP
    assert store.optuna_trials("fake")[1].constraints["slo:chat"] == pytest.approx(BADNESS_CAP + 0.9)


def test_unasked_probes_do_not_count_against_a_stopped_trial(tmp_path: Path, store: Store) -> None:
    traffic = {**make_spec(tmp_path).traffic.model_dump(), "time_scale": 2.0}
    parameters = {
        "max_num_seqs": {"type": "int", "low": 1, "high": 2},
        "kv_cache_dtype": {"type": "choice", "choices": ["auto", "int8"]},
    }
    engine = {"baseline": {"max_num_seqs": 2}}
    run(small(tmp_path, trials=3, engine=engine, search_space={"parameters": parameters}, traffic=traffic), store)
    unasked = [t for t in store.optuna_trials("fake") if t.params["kv_cache_dtype"] == "int8"]
    assert [t.user_attrs["reason"] for t in unasked] == ["slo_unreachable"] * 2
    assert {t.constraints["quality:recall"] for t in unasked} == {0.0}


FAULTS = [
    ("crash", EngineCrashed("exit status 4"), TrialState.PRUNED, "engine_crashed", 1),
    ("hang", EngineHung("no token"), TrialState.PRUNED, "engine_hung", 1),
    ("out of memory", EngineOutOfMemory("no room"), TrialState.PRUNED, "out_of_memory", 1),
    ("refused", ConfigRejected("no"), TrialState.PRUNED, "config_rejected", 1),
    ("does not come up, twice", LaunchError("silence"), TrialState.FAIL, "launch_failed", 2),
    ("a defect of ours", ZeroDivisionError("x"), TrialState.FAIL, "internal_error", 1),
]


@pytest.mark.parametrize(("error", "state", "reason", "attempts"), cases(FAULTS))
def test_a_failure_ends_the_trial_and_not_the_study(
    tmp_path: Path, store: Store, error: Exception, state: TrialState, reason: str, attempts: int
) -> None:
    seen: list[ServingConfig] = []

    def fault(config: ServingConfig, purpose: str) -> Exception | None:
        if purpose != "trial" or (seen and config != seen[0]):
            return None
        seen.append(config)
        return error

    run(small(tmp_path), store, fault)
    assert states(store) == [TrialState.COMPLETE, state, TrialState.COMPLETE, TrialState.COMPLETE]
    failure = load_results(store, "fake").trials[1]
    assert (failure.state, failure.reason) == ("failed", reason)
    assert failure.knobs == seen[0].knobs
    assert len(seen) == attempts
    if state is TrialState.PRUNED:
        assert set(store.optuna_trials("fake")[1].constraints.values()) == {WORST}


def test_a_launch_that_works_the_second_time_is_no_failure(tmp_path: Path, store: Store) -> None:
    failed: list[str] = []

    def fault(config: ServingConfig, purpose: str) -> Exception | None:
        if purpose == "trial" and not failed:
            failed.append(purpose)
            return LaunchError("port taken")
        return None

    run(small(tmp_path), store, fault)
    assert states(store) == [TrialState.COMPLETE] * 4 and failed


def test_a_failing_baseline_does_not_end_the_study(tmp_path: Path, store: Store) -> None:
    run(small(tmp_path, trials=8), store, lambda config, purpose: EngineCrashed("x") if purpose == "baseline" else None)
    results = load_results(store, "fake")
    assert results.baseline.reason == "engine_crashed"
    assert recommend(results).trial is not None


def test_the_study_gives_up_when_nothing_comes_up(tmp_path: Path, store: Store) -> None:
    with pytest.raises(ServingError, match="3 trials in a row broke; the last: launch_failed: no"):
        run(small(tmp_path, trials=9), store, lambda c, purpose: LaunchError("no") if purpose == "trial" else None)
    assert states(store) == [TrialState.COMPLETE] + [TrialState.FAIL] * 3


def test_without_a_reference_there_is_no_study(tmp_path: Path, store: Store) -> None:
    with pytest.raises(EngineCrashed):
        run(small(tmp_path), store, lambda config, purpose: EngineCrashed("x") if purpose == "reference" else None)


def test_a_configuration_that_the_engine_never_sees(tmp_path: Path, store: Store) -> None:
    """max_num_batched_tokens below max_num_seqs is refused by arithmetic."""
    parameters = {
        "max_num_seqs": {"type": "int", "low": 16, "high": 64},
        "max_num_batched_tokens": {"type": "int", "low": 8, "high": 32},
    }
    spec = small(
        tmp_path,
        trials=12,
        search_space={"parameters": parameters},
        engine={"baseline": {"max_num_batched_tokens": 32}},
    )
    testbed = run(spec, store)
    refused = [t for t in load_results(store, "fake").trials if t.reason == "config_rejected"]
    assert refused
    assert all(t.knobs["max_num_batched_tokens"] < t.knobs["max_num_seqs"] for t in refused)
    assert len([call for call in testbed.calls if call.purpose == "trial"]) == 12 - len(refused)


def test_an_interrupted_study_goes_on_and_loses_nothing(tmp_path: Path, store: Store) -> None:
    spec = small(tmp_path, trials=5)
    with pytest.raises(KeyboardInterrupt):
        run(spec, store, log=Log(stop_at="trial 3 (3/5)"))
    kept = [t.params for t in store.optuna_trials("fake") if t.state is TrialState.COMPLETE]
    assert len(kept) == 3
    assert TrialState.RUNNING not in states(store)
    log = Log()
    testbed = run(spec, store, log=log, resume=True)
    assert log.earlier.keys() == {0, 1, 2}
    assert all(outcome.objectives is not None and len(outcome.constraints) == 3 for outcome in log.earlier.values())
    trials = store.optuna_trials("fake")
    assert states(store) == [TrialState.COMPLETE] * 3 + [TrialState.FAIL] + [TrialState.COMPLETE] * 3
    assert [t.params for t in trials[:3]] == kept
    assert trials[3].params == trials[4].params
    assert load_results(store, "fake").trials[3].reason == "interrupted"
    assert "reference" not in [call.purpose for call in testbed.calls]
    assert [call.purpose for call in testbed.calls].count("trial") == 3


def test_a_measured_trial_that_was_not_told_is_told_on_resumption(
    tmp_path: Path, store: Store, monkeypatch: Any
) -> None:
    """kill -9 between storing a measurement and telling it: nothing runs after it, reconciliation included."""
    spec = small(tmp_path)

    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("tuner.climb.judge", die)
        patched.setattr("tuner.study._reconcile", lambda session, reference: None)
        run(spec, store)
    assert len(store.measurements("fake")) == 1 and states(store) == []
    testbed = run(spec, store, resume=True)
    assert "baseline" not in [call.purpose for call in testbed.calls]
    assert states(store) == [TrialState.COMPLETE] * 4


def test_a_running_trial_with_a_measurement_is_told(tmp_path: Path, store: Store, monkeypatch: Any) -> None:
    spec = small(tmp_path)

    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(spec, store, log=Log(stop_at="trial 1 (1/3)"))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("tuner.climb.judge", die)
        run(spec, store, resume=True)
    assert TrialState.RUNNING in states(store)
    testbed = run(spec, store, resume=True)
    assert TrialState.RUNNING not in states(store)
    assert [call.purpose for call in testbed.calls].count("trial") == 2
    told_late = [t for t in store.optuna_trials("fake") if search.SECONDS in t.user_attrs]
    (measured,) = [m.measurement for m in store.measurements("fake") if m.trial == told_late[0].number][:1]
    assert len(told_late) == 1 and told_late[0].user_attrs[search.SECONDS] == sum(measured.seconds.values())


def test_more_budget_is_no_other_study(tmp_path: Path, store: Store) -> None:
    run(small(tmp_path, trials=2), store)
    testbed = run(small(tmp_path, trials=4), store, resume=True)
    assert [call.purpose for call in testbed.calls].count("trial") == 2
    again = run(small(tmp_path, trials=4), store, resume=True)
    assert [call for call in again.calls if call.purpose in ("trial", "baseline", "reference")] == []


CHANGED = [
    ("an SLO", {"slos": {"chat": {"ttft": 0.5, "tpot": 0.05, "attainment": 0.9}}}, "slos.chat.ttft: changed"),
    ("the seed", {"seed": 7}, "seed: changed"),
    (
        "a fixed setting",
        {"engine": {"settings": {"kv_cache_memory_bytes": 5}}},
        "engine.settings.kv_cache_memory_bytes",
    ),
    (
        "the search space",
        {"search_space": {"parameters": {"max_num_seqs": {"type": "int", "low": 1, "high": 32}}}},
        "search_space: changed",
    ),
]


@pytest.mark.parametrize(("change", "message"), cases(CHANGED))
def test_a_changed_study_is_not_resumed(tmp_path: Path, store: Store, change: dict[str, Any], message: str) -> None:
    run(small(tmp_path, trials=1), store)
    with pytest.raises(ValueError, match=message):
        run(small(tmp_path, trials=1, **change), store, resume=True)


def test_a_changed_file_is_no_longer_the_same_study(tmp_path: Path, store: Store) -> None:
    spec = small(tmp_path, trials=1)
    run(spec, store)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="model .the content of the file.: changed since study 'fake' began"):
        run(spec, store, resume=True)


def test_a_study_is_not_started_twice(tmp_path: Path, store: Store) -> None:
    run(small(tmp_path, trials=1), store)
    with pytest.raises(ValueError, match="exists; resume it"):
        run(small(tmp_path, trials=1), store)


def test_a_crash_in_validation_is_stored_and_measured_again_on_resumption(tmp_path: Path, store: Store) -> None:
    spec, log = small(tmp_path, trials=12), Log()

    def fault(config: ServingConfig, purpose: str) -> Exception | None:
        varied = config.knobs["max_num_seqs"] != 16 or config.knobs["kv_window"] is not None
        return EngineCrashed("boom") if purpose in ("holdout", "recorded_rate") and varied else None

    run(spec, store, fault, log)
    results = load_results(store, "fake")
    found = recommend(results)
    failed = [(failure.trial, failure.purpose, failure.reason) for failure in results.validation_failures]
    assert found.trial is not None and not found.deployable
    tried = [failure.trial for failure in results.validation_failures if failure.purpose == "holdout"]
    assert len(set(tried)) == len(tried) > 1, "each runner-up is given its chance once"
    assert failed == [(n, "holdout", "engine_crashed") for n in tried] + [
        (found.trial.number, "recorded_rate", "engine_crashed")
    ]
    assert found.trial.state == "feasible" and store.failures("fake") == ()
    assert "failed (engine_crashed)" in found.verdict
    assert sum("failed: engine_crashed" in note for note in log.notes) == len(failed)
    out = tmp_path / "out"
    (out / "deploy").mkdir(parents=True)
    (out / "deploy" / "vllm.yaml").write_text("of an earlier call")
    assert [path.name for path in deliver(results, found, out)] == ["report.html", "recommended.yaml"]
    assert list((out / "deploy").iterdir()) == []
    assert f"# Not deployable: {found.verdict}\n" in (out / "recommended.yaml").read_text()
    with pytest.raises(ValueError, match="^Not deployable: Trial .* failed"):
        export_to("vllm", results, found, out)

    testbed = run(spec, store, resume=True)
    assert [call.purpose for call in testbed.calls] == [*["holdout"] * len(tried), "recorded_rate"]
    results = load_results(store, "fake")
    assert results.validation_failures == ()
    again = recommend(results)
    assert again.trial is not None and again.trial.number == found.trial.number


def test_when_the_best_does_not_hold_the_next_runner_up_is_validated(tmp_path: Path, store: Store) -> None:
    broken: list[ServingConfig] = []

    def fault(config: ServingConfig, purpose: str) -> Exception | None:
        if purpose == "holdout" and config.knobs["max_num_seqs"] != 16 and not broken:
            broken.append(config)
        return EngineCrashed("boom") if purpose == "holdout" and config in broken else None

    run(small(tmp_path, trials=12), store, fault)
    results = load_results(store, "fake")
    best = recommend(results)
    assert best.trial is not None and best.deployable
    assert best.trial.knobs != broken[0].knobs and best.trial.number in held(results)
    assert [v.trial for v in results.validations if v.purpose == "recorded_rate"] == [0, best.trial.number]


def test_one_runner_at_a_time(tmp_path: Path, store: Store) -> None:
    spec = small(tmp_path, trials=1)
    run(spec, store)
    store.acquire_lease("fake", "elsewhere:1", 60.0)
    with pytest.raises(ValueError, match="elsewhere:1"):
        run(spec, store, resume=True)


def test_the_lease_of_a_dead_runner_of_this_machine_is_taken_over(tmp_path: Path, store: Store) -> None:
    spec = small(tmp_path, trials=1)
    run(spec, store)
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    store.acquire_lease("fake", f"{socket.gethostname()}:{child}", 600.0)
    run(spec, store, resume=True)
    assert store.lease("fake") is None


@pytest.mark.parametrize("renewed_before_it_started", [False, True])
def test_an_expired_lease_of_a_living_process_of_this_machine_holds_unless_its_number_was_given_anew(
    tmp_path: Path, store: Store, monkeypatch: Any, renewed_before_it_started: bool
) -> None:
    spec = small(tmp_path, trials=1)
    run(spec, store)
    with subprocess.Popen(["sleep", "3600"]) as living:
        if not renewed_before_it_started:
            monkeypatch.setattr("tuner.resume.LEASE_SECONDS", 0.0)
        owner = f"{socket.gethostname()}:{living.pid}"
        store.acquire_lease("fake", owner, -1.0 if renewed_before_it_started else 0.0)
        try:
            assert runner_alive(store, "fake") == (None if renewed_before_it_started else owner)
            if renewed_before_it_started:
                run(spec, store, resume=True)
            else:
                with pytest.raises(ValueError, match=f"^study 'fake' is being run by {owner}; stop it, or wait$"):
                    run(spec, store, resume=True)
        finally:
            living.kill()


REFUSED = [
    ("a model that is not there", {"model": "nowhere"}, "model: .*nowhere: expected a checkpoint directory"),
    ("a class without SLO", {"slos": {"docs": {"ttft": 1}}, "tail": {"slo_class": "docs"}}, "has class 'chat'"),
    (
        "guesses that stand by chance",
        {"engine": {"settings": {"synthetic_acceptance": 0.5}}},
        "synthetic_acceptance: text made with it is not the model's",
    ),
    ("fixed and varied", {"engine": {"settings": {"max_num_seqs": 4}}}, "engine.settings.max_num_seqs: fixed here"),
    ("a baseline outside", {"engine": {"baseline": {"max_num_seqs": 99}}}, "engine.baseline: max_num_seqs: expected"),
    ("an unknown knob", {"engine": {"baseline": {"max_num_sqs": 9}}}, "did you mean max_num_seqs"),
    (
        "an unknown setting",
        {"engine": {"settings": {"blocksize": 9}}},
        "unknown setting; did you mean block_size",
    ),
    (
        "a knob the engine lacks",
        {"search_space": {"parameters": {"speed": {"type": "int", "low": 1, "high": 3}}}},
        "search_space: speed: the bundled engine has no such setting",
    ),
]


@pytest.mark.parametrize(("change", "message"), cases(REFUSED))
def test_mistakes_in_the_study_file_start_nothing(
    tmp_path: Path, store: Store, change: dict[str, Any], message: str
) -> None:
    testbed = FakeTestbed()
    with pytest.raises(ValueError, match=message) as caught:
        run_study(small(tmp_path, **change), store, testbed, Log(), {}, False)
    assert "\n" not in str(caught.value)
    assert testbed.calls == [] and store.study_names() == ()


def test_without_a_draft_model_speculation_is_not_searched(tmp_path: Path, store: Store) -> None:
    parameters = {
        "max_num_seqs": {"type": "int", "low": 1, "high": 64},
        "num_speculative_tokens": {"type": "int", "low": 0, "high": 4},
    }
    run(small(tmp_path, search_space={"parameters": parameters}), store)
    assert {tuple(trial.knobs) for trial in load_results(store, "fake").trials} == {("max_num_seqs",)}
    run(small(tmp_path, name="drafted", draft_model="draft", search_space={"parameters": parameters}), store)
    drafted: StudyResults = load_results(store, "drafted")
    assert drafted.baseline.knobs == {"max_num_seqs": 16, "num_speculative_tokens": 0}
    ngram = {"name": "bundled", "settings": {"speculative_method": "ngram"}}
    run(small(tmp_path, name="ngram", engine=ngram, search_space={"parameters": parameters}), store)
    assert load_results(store, "ngram").baseline.knobs == drafted.baseline.knobs
    method = {"type": "choice", "choices": ["draft_model", "ngram"], "when": {"num_speculative_tokens": "positive"}}
    space = make_plan(small(tmp_path, search_space={"parameters": parameters | {"speculative_method": method}})).space
    assert space.parameters["speculative_method"].choices == ("ngram",)
