"""A measurement whose client lagged is not compared: it is measured again once, and then fails by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.fakes import FakeTestbed, make_spec
from tests.tuner.test_study import Log
from tuner.errors import LaunchError
from tuner.recommend import recommend
from tuner.results import load_results
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement
from tuner.store import Store
from tuner.study import run_study

Lagging = Callable[[str, ServingConfig], bool]


class LaggingTestbed(FakeTestbed):
    """Sends a twentieth of a second late where it is told to; what it measures is much too good."""

    def __init__(self, lagging: Lagging) -> None:
        super().__init__()
        self._lagging = lagging

    def measure(self, config: ServingConfig, *arguments: Any, **options: Any) -> Measurement:
        measured = super().measure(config, *arguments, **options)
        if not self._lagging(options["purpose"], config):
            return measured
        late = (
            replace(r, sent=r.scheduled + 0.1, token_times=tuple(r.scheduled + 0.001 * i for i in range(1, 5)))
            for r in measured.records
        )
        finished = (replace(r, output_tokens=4, error=None, finish_reason="length") for r in late)
        return replace(measured, records=tuple(finished), stopped=None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "study.db") as store:
        yield store


def run(directory: Path, store: Store, lagging: Lagging, trials: int = 2) -> tuple[LaggingTestbed, Log]:
    testbed, log = LaggingTestbed(lagging), Log()
    spec = make_spec(directory, budget={"trials": trials, "startup_trials": 2, "finalists": 1, "examine": False})
    run_study(spec, store, testbed, log, {"machine": "fake"}, resume=False)
    return testbed, log


def once(purpose: str) -> Lagging:
    """The first measurement with this purpose."""
    calls: list[str] = []

    def lagging(asked: str, config: ServingConfig) -> bool:
        calls.append(asked)
        return asked == purpose and calls.count(purpose) == 1

    return lagging


@pytest.mark.parametrize("purpose", ["baseline", "trial", "holdout", "recorded_rate"])
def test_a_lag_that_passes_costs_one_more_measurement(tmp_path: Path, store: Store, purpose: str) -> None:
    quiet, _ = run(tmp_path / "quiet", store, lambda purpose, config: False)
    with Store(tmp_path / "other.db") as other:
        lagged, log = run(tmp_path / "lagged", other, once(purpose))
        expected, found = load_results(store, "fake"), load_results(other, "fake")
    assert [call.purpose for call in lagged.calls].count(purpose) == 1 + [c.purpose for c in quiet.calls].count(purpose)
    assert [trial.objectives for trial in found.trials] == [trial.objectives for trial in expected.trials]
    assert [v.constraints for v in found.validations] == [v.constraints for v in expected.validations]
    assert [note for note in log.notes if note.startswith(f"{purpose} is measured again: client_lagged")]


def test_a_trial_that_lags_twice_cannot_win(tmp_path: Path, store: Store) -> None:
    # Two of them: a third in a row would end the study.
    windowed: list[dict[str, Any]] = []

    def lagging(purpose: str, config: ServingConfig) -> bool:
        knobs = dict(config.knobs)
        if purpose == "trial" and knobs["kv_window"] == 256 and knobs not in windowed:
            windowed.append(knobs)
        return purpose == "trial" and knobs in windowed[:2]

    _, log = run(tmp_path, store, lagging, 6)
    results = load_results(store, "fake")
    doubtful = [trial for trial in results.trials if trial.state == "doubtful"]
    assert doubtful and len(doubtful) < len(results.trials)
    for trial in doubtful:
        assert (trial.reason, trial.objectives, trial.traffic) == ("client_lagged", None, None)
        assert log.ended[trial.number].state == "broken"
        assert store.optuna_trials("fake")[trial.number].state == TrialState.FAIL
        assert "ms late at p99" in str(trial.detail)
    best = recommend(results)
    assert best.trial is None or best.trial.number not in {trial.number for trial in doubtful}
    assert not {trial.number for trial in doubtful} & {trial.number for trial in best.runners_up}


def test_a_machine_that_always_lags_ends_the_study(tmp_path: Path, store: Store) -> None:
    with pytest.raises(LaunchError, match="3 trials in a row broke; the last: client_lagged"):
        run(tmp_path, store, lambda purpose, config: purpose in ("baseline", "trial"), 4)
    assert recommend(load_results(store, "fake")).trial is None


def test_a_validation_that_lags_twice_proves_nothing(tmp_path: Path, store: Store) -> None:
    run(tmp_path, store, lambda purpose, config: purpose == "holdout")
    results = load_results(store, "fake")
    assert "holdout" not in {validation.purpose for validation in results.validations}
    assert {f.reason for f in results.validation_failures} == {"client_lagged"}
    assert not recommend(results).deployable
