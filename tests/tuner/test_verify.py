"""`tune verify`: the recommendation against the baseline by turns, on the study's traffic and on new."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.fakes import PATIENCE, FakeTestbed, engine_launcher, make_spec, make_trace
from tests.tuner.test_cli import study_file
from tests.tuner.test_study import Log
from tuner.cli.__main__ import app
from tuner.errors import EngineCrashed, LaunchError
from tuner.recommend import recommend
from tuner.results import StudyResults, load_results
from tuner.serving.config import ServingConfig
from tuner.store import Store
from tuner.study import run_study
from tuner.traffic.trace import Trace
from tuner.traffic.trace_file import save_trace
from tuner.verification import Verification, load_verifications
from tuner.verify import Question, _differences, verification_plan, verify

MACHINE = {"machine": "fake"}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a study that recommends a configuration which serves many times what the baseline does."""
    directory = tmp_path_factory.mktemp("tuned")
    quality = {"probes": "probes.jsonl", "production_sample": 5}
    spec = make_spec(
        directory, budget={"trials": 10, "startup_trials": 4, "finalists": 1, "examine": False}, quality=quality
    )
    with Store(directory / "study.db") as store:
        run_study(spec, store, FakeTestbed(), Log(), MACHINE, False)
    return directory


@pytest.fixture
def store(tuned: Path) -> Iterator[Store]:
    with Store(tuned / "study.db") as store:
        yield store


def _results(store: Store) -> StudyResults:
    return load_results(store, "fake")


def _recommended(store: Store) -> int:
    trial = recommend(_results(store)).trial
    assert trial is not None and trial.number
    return trial.number


def _verify(
    store: Store, question: Question, testbed: FakeTestbed | None = None, log: Log | None = None
) -> Verification:
    return verify(_results(store), question, store, testbed or FakeTestbed(), log or Log(), MACHINE)


def _faster(directory: Path, factor: float) -> Path:
    """The study's trace, its requests so many times as close together."""
    old = make_trace()
    requests = tuple(
        type(r)(r.id, r.arrival / factor, r.tenant, r.slo_class, r.prompt, r.max_tokens,
                prompt_tokens=r.prompt_tokens, output_tokens=r.output_tokens)
        for r in old.requests
    )  # fmt: skip
    path = directory / f"x{factor:g}.jsonl"
    save_trace(Trace(requests, {"source": "test"}, seconds=8.0 / factor), path)
    return path


def test_it_replays_by_turns_and_compares_request_by_request(store: Store) -> None:
    number, testbed = _recommended(store), FakeTestbed()
    before = len(_results(store).validations)
    found = _verify(store, Question(number, 4.0, rounds=3, held_out=True), testbed)
    assert [call.config.knobs for call in testbed.calls[:2]] == [
        _results(store).trials[0].knobs, _results(store).trials[number].knobs,
    ]  # fmt: skip
    assert [c.config.fingerprint for c in testbed.calls] == [c.config.fingerprint for c in testbed.calls[:2]] * 3
    assert {(call.purpose, call.window, call.time_scale) for call in testbed.calls} == {("verify", "holdout", 4.0)}
    assert [call.probes for call in testbed.calls] == [0, 51, 0, 0, 0, 0], "asked once, and asked again"
    assert found.holds and found.comparison == "better" and not found.missed
    assert found.baseline is not None and found.recommended is not None and found.difference is not None
    assert found.difference.value == pytest.approx(found.recommended.mean_goodput - found.baseline.mean_goodput)
    assert found.difference.low > 0 and found.baseline.violations["chat"] > 0
    assert load_verifications(store, "fake", _results(store).spec)[-1] == found
    assert len(_results(store).validations) == before, "the study's own validations stay what they were"
    assert recommend(_results(store)).trial is not None


def test_more_traffic_than_it_holds_breaks_it(tuned: Path, store: Store) -> None:
    testbed = FakeTestbed()
    found = _verify(store, Question(_recommended(store), 4.0, 2, trace=_faster(tuned, 8.0)), testbed)
    assert not found.holds and found.missed["slo:chat"] > 0
    assert found.about.window == "new" and found.about.trace.endswith("x8.jsonl")
    assert [call.purpose for call in testbed.calls][0] == "reference", "the new window's production sample has its own"


def test_a_floor_that_is_lost_breaks_it(store: Store) -> None:
    forgetful = next(t.number for t in _results(store).trials if t.knobs["kv_window"] == 64)
    found = _verify(store, Question(forgetful, 1.0, 1))
    assert not found.holds and found.missed["quality:recall"] > 0


def test_where_both_serve_everything_nothing_is_shown(store: Store) -> None:
    found = _verify(store, Question(_recommended(store), 0.5, 2))
    assert found.comparison == "not told apart" and found.holds
    assert found.difference is not None and found.difference.low < 0 == found.difference.value < found.difference.high


def test_the_baseline_where_the_baseline_is_recommended(store: Store) -> None:
    testbed = FakeTestbed()
    found = _verify(store, Question(0, 0.5, 2), testbed)
    assert found.holds and found.comparison == "the baseline itself" and found.difference is None
    assert len(testbed.calls) == 2


def test_an_engine_that_fails_under_the_recommendation_is_an_answer(store: Store) -> None:
    number = _recommended(store)
    knobs = dict(_results(store).trials[number].knobs)

    def crash(config: ServingConfig, purpose: str) -> Exception | None:
        return EngineCrashed("exit status 4") if config.knobs == knobs else None

    found = _verify(store, Question(number, 4.0, 2), FakeTestbed(crash))
    assert not found.holds and found.about.failure == "engine_crashed: exit status 4"
    assert found.baseline is not None and found.recommended is None
    with pytest.raises(EngineCrashed):
        _verify(store, Question(number, 4.0, 2), FakeTestbed(lambda config, purpose: EngineCrashed("both")))
    with pytest.raises(LaunchError):
        _verify(store, Question(number, 4.0, 2), FakeTestbed(lambda config, purpose: LaunchError("port")))


def test_what_else_has_changed_is_said(tuned: Path, store: Store) -> None:
    weights = tuned / "model" / "model.safetensors"
    log, kept = Log(), weights.read_bytes()
    weights.write_bytes(b"retrained")
    try:
        _verify(store, Question(0, 0.5, 1), log=log)
    finally:
        weights.write_bytes(kept)
    assert log.notes == ["model: the files have changed since the study"]


def test_another_model_of_the_study_that_has_changed_is_said_too(store: Store) -> None:
    results = replace(_results(store), provenance={"files": {"models.0": "then", "traffic.trace": "then"}})
    plan = verification_plan(results.spec, Question(0, 0.5, 1))
    plan = replace(plan, hashes={**plan.hashes, "models.0": "now"})
    assert _differences(results, plan, MACHINE) == ["models.0: the files have changed since the study"]


def _tune(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_the_command_line_tells_and_exits_accordingly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.serving.testbed.DYING_SECONDS", PATIENCE)
    engine = {"launcher": list(engine_launcher()), "hang_timeout": PATIENCE, "baseline": {"kv_cache_dtype": "int8"}}
    study = study_file(
        tmp_path, engine=engine, budget={"trials": 1, "startup_trials": 1, "finalists": 0, "examine": False}
    )
    assert _tune("run", study, "--out", tmp_path / "runs").exit_code == 0
    run = tmp_path / "runs" / "fake"
    held = _tune("verify", run, "--json", "--rounds", "1")
    assert held.exit_code == 0, held.output
    found = json.loads(held.stdout)
    assert found["holds"] and found["about"]["window"] == "holdout" and found["quality"]
    shown = _tune("verify", run, "--trace", tmp_path / "trace.jsonl", "--window", "0:1", "--rounds", "1")
    assert shown.exit_code == 0 and "still holds on trace.jsonl at 4x" in shown.stdout
    assert "traffic: arrival rate (requests/s) 10, tuned on 10 (limit 40)\n" in shown.stdout
    (tmp_path / "model" / "faults.json").write_text(json.dumps([{"when": {"kv_cache_dtype": "int8"}, "do": "crash"}]))
    broken = _tune("verify", run, "--rounds", "1")
    assert broken.exit_code == 1, broken.output
    assert "The baseline, which is recommended, no longer holds on holdout at 4x: its engine failed" in broken.stdout
    for options, message in (
        (["--window", "hold"], "--window hold: expected tune or holdout"),
        (["--trace", tmp_path / "none.jsonl"], "none.jsonl"),
        (["--time-scale", "0"], "--time-scale 0: expected a number above 0"),
    ):
        refused = _tune("verify", run, *options)
        assert refused.exit_code == 2 and message in refused.stderr and refused.stderr.count("\n") == 1


def test_nothing_to_verify(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, slos={"chat": {"ttft": 0.001}}, budget={"trials": 1, "finalists": 0, "examine": False})
    with Store(tmp_path / "study.db") as store:
        run_study(spec, store, FakeTestbed(), Log(), MACHINE, False)
    refused = _tune("verify", tmp_path)
    assert refused.exit_code == 3 and "nothing to verify: No recommendation" in refused.stderr
