"""Results are derived from the store: joined with Optuna's trials, scored again with whatever SLOs are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.fakes import cases
from tests.tuner.builders import answered, failed, forced, measurement, recall
from tuner.results import OBJECTIVES, load_results
from tuner.scored import UNPROVEN, score
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement
from tuner.spec import StudySpec, parse_spec
from tuner.store import Store

REFERENCE = [*(recall(f"f{i}", True) for i in range(60)), *(forced(f"t{i}", [-1.0, -0.5]) for i in range(10))]
FORGETFUL = [*(recall(f"f{i}", i % 2 == 0) for i in range(60)), *REFERENCE[60:]]
SPEC: dict[str, Any] = {
    "name": "s",
    "model": "m",
    "traffic": {"trace": "t.jsonl", "drain_timeout": 5.0},
    "slos": {"chat": {"ttft": 1.0, "attainment": 0.5}, "docs": {"e2e": 9.0}},
    "quality": {"probes": "p.jsonl"},
    "search_space": "space.yaml",
    "tail": {"slo_class": "chat", "metric": "ttft"},
}
KEYS = ["quality:facts", "quality:text", "slo:chat", "slo:docs"]


def _spec(**changes: Any) -> StudySpec:
    return parse_spec({**SPEC, **changes}, source="study.yaml", base=Path("/"))


def _measured(ttft: float, probes: Any = REFERENCE, seqs: int = 8, **changes: Any) -> Measurement:
    records = [answered(ttft, name=f"c{i}") for i in range(20)] + [answered(2.0, name="d", slo_class="docs")]
    config = ServingConfig("bundled", {"model": "m"}, {"max_num_seqs": seqs})
    return measurement(**{"records": records, "probes": probes, "config": config, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "study.db") as opened:
        opened.create_study("s", _spec().model_dump_json(), "hash", {"reference_key": "key"}, time_scale=3.0)
        opened.save_reference("key", REFERENCE)
        yield opened


def _ask(store: Store, number: int) -> optuna.Study:
    study = optuna.create_study(
        study_name="s", storage=store.optuna_storage(), directions=["maximize"] * 3, load_if_exists=True
    )
    for _ in range(number):
        study.ask().suggest_int("max_num_seqs", 1, 64)
    return study


def test_a_study_with_every_kind_of_trial(store: Store) -> None:
    study = _ask(store, 7)
    store.save_measurement("s", None, _measured(2.0, (), purpose="calibration"))
    store.save_measurement("s", 0, _measured(1.5, purpose="baseline"))
    store.save_measurement("s", 1, _measured(0.5, seqs=16))
    store.save_measurement("s", 2, _measured(0.2, FORGETFUL))
    store.save_measurement("s", 3, _measured(0.9, (), stopped="hopeless"))
    store.save_failure("s", 4, "engine_crashed", "signal 11", {"launch": 2.0}, ServingConfig("bundled", {}, {"k": 1}))
    study.tell(5, state=optuna.trial.TrialState.FAIL)
    store.save_measurement("s", 1, _measured(0.7, (), purpose="holdout", window="holdout", time_scale=1.0))

    results = load_results(store, "s")

    assert [(t.number, t.state, t.reason) for t in results.trials] == [
        (0, "infeasible", None),
        (1, "feasible", None),
        (2, "infeasible", None),
        (3, "infeasible", "stopped_early"),
        (4, "failed", "engine_crashed"),
        (5, "failed", "not_measured"),
        (6, "running", None),
    ]
    assert [list(t.constraints) for t in results.trials[:4]] == [KEYS] * 4
    assert {name for name, value in results.trials[2].constraints.items() if value > 0} == {"quality:facts"}
    assert results.baseline.number == 0 and [t.number for t in results.front] == [1]
    assert results.trials[1].knobs == {"max_num_seqs": 16} and results.trials[4].knobs == {"k": 1}
    assert results.trials[4].seconds == {"launch": 2.0} and results.trials[6].knobs.keys() == {"max_num_seqs"}
    assert [(v.trial, v.purpose, v.window, v.time_scale) for v in results.validations] == [
        (0, "calibration", "tune", 2.0),
        (1, "holdout", "holdout", 1.0),
    ]
    assert list(results.validations[0].constraints) == ["slo:chat", "slo:docs"]
    assert (results.time_scale, results.environment) == (3.0, {"cpu": "test"})
    assert any(doubt.startswith("too_few_requests") for doubt in results.trials[1].doubts)


def test_a_new_slo_scores_old_measurements_again(store: Store) -> None:
    _ask(store, 2)
    store.save_measurement("s", 0, _measured(1.5, purpose="baseline"))
    store.save_measurement("s", 1, _measured(0.5))
    stricter = _spec(slos={"chat": {"ttft": 0.4}, "docs": {"e2e": 9.0}})
    assert [t.state for t in load_results(store, "s").trials] == ["infeasible", "feasible"]
    assert [t.state for t in load_results(store, "s", stricter).trials] == ["infeasible", "infeasible"]
    with pytest.raises(ValueError, match="SLO class 'docs' is not among slos: chat"):
        load_results(store, "s", _spec(slos={"chat": {"ttft": 9.0}}))


def test_the_front_is_that_of_the_feasible(store: Store) -> None:
    _ask(store, 4)
    bad = [answered(0.1, name=f"c{i}") for i in range(12)] + [failed(name=f"x{i}") for i in range(8)]
    store.save_measurement("s", 0, _measured(0.5, purpose="baseline"))
    store.save_measurement("s", 1, _measured(0.6))
    store.save_measurement("s", 2, _measured(0.1, FORGETFUL))
    store.save_measurement("s", 3, _measured(0.1, records=bad))
    assert [t.on_front for t in load_results(store, "s").trials] == [True, False, False, False]


def test_a_measurement_outranks_what_became_of_its_trial(store: Store) -> None:
    """A kill between saving and telling leaves Optuna's trial running, then reconciled as failed."""
    study = _ask(store, 2)
    store.save_measurement("s", 0, _measured(0.5, purpose="baseline"))
    store.save_measurement("s", 1, _measured(0.6))
    study.tell(1, state=optuna.trial.TrialState.FAIL)
    assert [t.state for t in load_results(store, "s").trials] == ["feasible", "feasible"]


def test_a_study_without_trials_has_nothing_to_read(store: Store) -> None:
    with pytest.raises(ValueError, match="study 's' has no trials yet"):
        load_results(store, "s")
    with pytest.raises(ValueError, match="no study 'other'"):
        load_results(store, "other")


@pytest.mark.parametrize(
    "taken, goodput, quality, tail",
    cases(
        [
            ("all good", _measured(0.5), 2.1, 1.0, 0.5),
            ("nothing answered waits to the end of the drain", _measured(1, records=[failed()] * 5), 0.0, 1.0, 15.0),
            ("stopped before its probes", _measured(0.5, ()), 2.1, 0.0, 0.5),
            ("half of the answers forgotten", _measured(0.5, FORGETFUL), 2.1, 0.75, 0.5),
        ]
    ),
)
def test_objectives(taken: Measurement, goodput: float, quality: float, tail: float) -> None:
    found = score(taken, REFERENCE, _spec())
    expected = dict(zip(OBJECTIVES, (goodput, quality, tail), strict=True))
    assert dict(zip(OBJECTIVES, found.objectives, strict=True)) == pytest.approx(expected)
    assert list(found.constraints) == KEYS


def test_unmeasured_quality_is_never_feasible() -> None:
    found = score(_measured(0.5, ()), REFERENCE, _spec())
    assert found.constraints["quality:facts"] == UNPROVEN and not found.feasible
    assert not score(_measured(0.5, ()), (), _spec()).feasible
    assert score(_measured(0.5), REFERENCE, _spec()).feasible


def test_a_slice_has_its_own_floor_or_the_default() -> None:
    lenient = {"probes": "p", "default_floor": {"max_nll_increase": 0.5}, "floors": {"facts": {"min_recall": 0.3}}}
    found = score(_measured(0.5, FORGETFUL), REFERENCE, _spec(quality=lenient))
    assert found.feasible and found.constraints["quality:text"] == -0.5
