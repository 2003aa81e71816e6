"""Sentinels: what is a drift, and what a study does about one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes import FakeTestbed, cases, make_spec, write_study
from tests.tuner.test_study import Log
from tuner.drift import MAX_DRIFTS, detect
from tuner.recommend import recommend
from tuner.results import load_results
from tuner.spec import StudySpec
from tuner.store import Store
from tuner.study import run_study

SLOW, GOOD = 1.0 - 0.3, 1.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "study.db") as store:
        yield store


@pytest.mark.parametrize(
    ("readings", "found", "undecided"),
    cases(
        [
            ("nothing measured", [], [], False),
            ("a steady machine", [1.0, 1.04, 0.95, 1.02], [], False),
            ("a reading off, not taken again yet", [1.0, 1.0, SLOW], [], True),
            ("one slow moment", [1.0, 1.0, SLOW, GOOD, GOOD], [], False),
            ("one slow moment, then a fast one", [1.0, 1.0, SLOW, 1.3, GOOD], [], False),
            ("a slower machine", [1.0, 1.0, SLOW, SLOW], [(1, 2)], False),
            ("a faster machine", [1.0, 1.0, 1.3, 1.3], [(1, 2)], False),
            ("slower, and steady there", [1.0, 1.0, SLOW, SLOW, SLOW, SLOW], [(1, 2)], False),
            ("slower, and back again", [1.0, 1.0, SLOW, SLOW, GOOD, GOOD], [(1, 2), (3, 4)], False),
            (
                "the good one after a slow moment is the last good one",
                [1, 1, 0.7, 1, 0.7, 0.7],
                [(3, 4)],
                False,
            ),
            ("no more than are acted upon", [1, 0.7, 0.7, 1, 1, 0.7, 0.7, 1, 1], [(0, 1), (2, 3), (4, 5)], False),
        ]
    ),
)
def test_two_readings_beyond_the_limit_are_a_drift(
    readings: list[float], found: list[tuple[int, int]], undecided: bool
) -> None:
    drifts, pending = detect(readings)
    assert [(drift.since, drift.found) for drift in drifts] == found
    assert pending == undecided
    assert len(drifts) <= MAX_DRIFTS


def study(directory: Path, sentinel: int = 4, trials: int = 8) -> StudySpec:
    budget = {"trials": trials, "startup_trials": 2, "finalists": 1, "examine": False, "plateau": False}
    traffic = write_study(directory)["traffic"] | {"time_scale": "auto"}
    return make_spec(directory, budget=budget | {"sentinel": sentinel}, traffic=traffic)


class Machine(FakeTestbed):
    """Its pace is asked with the purpose and how many calls of that purpose there were with this one."""

    def __init__(self, pace: Callable[[str, int], float]) -> None:
        super().__init__(slowness=lambda n: self._slowness(pace))

    def _slowness(self, pace: Callable[[str, int], float]) -> float:
        purpose = self.calls[-1].purpose
        return pace(purpose, sum(call.purpose == purpose for call in self.calls))


def run(spec: StudySpec, store: Store, machine: FakeTestbed, log: Log | None = None, resume: bool = False) -> list[str]:
    run_study(spec, store, machine, log or Log(), {"machine": "fake"}, resume)
    return [call.purpose for call in machine.calls]


def knobs(store: Store) -> list[dict[str, object]]:
    return [dict(trial.params) for trial in store.optuna_trials("fake")]


def test_a_steady_machine_costs_one_sentinel_every_n_trials(tmp_path: Path, store: Store) -> None:
    log = Log()
    run(study(tmp_path), store, FakeTestbed(), log)
    order = [what for what in log.begun if what.startswith(("trial", "sentinel"))]
    assert [order.index("sentinel"), order[5:].index("sentinel") + 5] == [4, 9]
    assert "sentinel, again" not in order
    with Store(tmp_path / "without.db") as other:
        purposes = run(study(tmp_path, sentinel=0), other, FakeTestbed())
        assert "sentinel" not in purposes
        assert knobs(store) == knobs(other)
        assert recommend(load_results(store, "fake")).trial == recommend(load_results(other, "fake")).trial


def test_one_slow_moment_is_no_drift(tmp_path: Path, store: Store) -> None:
    log = Log()
    machine = Machine(lambda purpose, n: 1.5 if purpose == "sentinel" and n == 1 else 1.0)
    assert run(study(tmp_path), store, machine, log).count("sentinel") == 3
    assert "sentinel, again" in log.begun
    assert not [note for note in log.notes if "drifted" in note]
    assert all(trial.reason != "drifted" for trial in load_results(store, "fake").trials)


class Slower(FakeTestbed):
    """30 % slower from its `after`th call on."""

    def __init__(self, after: int) -> None:
        super().__init__(slowness=lambda n: 1.3 if n > after else 1.0)


def _before_the_sixth_trial(tmp_path: Path) -> int:
    """Calls of the testbed before trial 6 begins on a steady machine."""
    with Store(tmp_path / "steady.db") as steady:
        log, machine = Log("trial 6 (6/8)"), FakeTestbed()
        with pytest.raises(KeyboardInterrupt):
            run(study(tmp_path), steady, machine, log)
        return len(machine.calls)


@pytest.mark.parametrize("stop_at", cases([("at a stretch", ""), ("stopped between the two", "sentinel, again")]))
def test_trials_since_the_last_good_sentinel_are_measured_again(tmp_path: Path, store: Store, stop_at: str) -> None:
    spec, log, after = study(tmp_path), Log(stop_at), _before_the_sixth_trial(tmp_path)
    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            run(spec, store, Slower(after), log)
        log = Log()
        run(spec, store, Slower(0), log, resume=True)
    else:
        run(spec, store, Slower(after), log)
    assert len([note for note in log.notes if "machine drifted" in note and "less load" in note]) == 1
    results = load_results(store, "fake")
    drifted = [trial.number for trial in results.trials if trial.reason == "drifted"]
    assert drifted == [5, 6, 7, 8]
    hopeless = load_results(store, "fake", make_spec(tmp_path, slos={"chat": {"ttft": 0.001}}))
    assert [trial.number for trial in hopeless.trials if trial.reason == "drifted"] == drifted, (
        "of the machine, not SLOs"
    )
    asked = knobs(store)
    assert asked[9:13] == asked[5:9] and len(asked) == 13
    chosen = recommend(results).trial
    assert chosen is not None and chosen.number not in drifted
