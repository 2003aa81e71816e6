"""What is tried next: conditions, repeats, the sampler's memory, the stop rule."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search_spaces.space import SearchSpace, load_space
from tests.fakes import cases
from tuner import search

SMALL = {"a": {"type": "int", "low": 1, "high": 3}, "b": {"type": "choice", "choices": [None, "x"]}}
CONDITIONAL = {
    "window": {"type": "choice", "choices": [None, 64, 128]},
    "sinks": {"type": "int", "low": 0, "high": 8, "step": 4, "when": {"window": "not_null"}},
    "depth": {"type": "int", "low": 1, "high": 512, "log": True},
    "rate": {"type": "float", "low": 0.1, "high": 0.9},
}


def space(parameters: dict[str, Any]) -> SearchSpace:
    return load_space({"parameters": parameters})


def new_study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(directions=search.directions(), sampler=search.open_sampler())


def run(study: optuna.Study, of: SearchSpace, count: int, seed: int = 0, startup: int = 3) -> list[search.Proposal]:
    """Ask and tell `count` times; larger depth (or a) serves more, and is infeasible above 100."""
    proposals = []
    for _ in range(count):
        baseline = {name: getattr(p, "low", None) for name, p in of.parameters.items() if not p.when}
        proposal = search.ask(study, of, baseline, seed, startup)
        size = float(proposal.knobs.get("depth", proposal.knobs.get("a", 1)))
        proposal.trial.set_constraint("slo:chat", (size - 100) / 100)
        study.tell(proposal.trial, (size, 1.0, 1.0))
        proposals.append(proposal)
    return proposals


def test_inert_parameters_are_not_asked() -> None:
    proposals = run(new_study(), space(CONDITIONAL), 25)
    assert {("sinks" in p.knobs) == (p.knobs["window"] is not None) for p in proposals} == {True}
    assert {p.knobs["window"] for p in proposals} == {None, 64, 128}
    assert all(space(CONDITIONAL).active(p.knobs) == p.knobs for p in proposals)


def test_no_configuration_twice_while_there_is_another() -> None:
    proposals = run(new_study(), space(SMALL), 9)
    assert len({search.key(p.knobs) for p in proposals[:6]}) == 6
    assert [p.replicate for p in proposals] == [False] * 6 + [True] * 3


def test_repeats_thrown_away_leave_no_trial_behind() -> None:
    study = new_study()
    run(study, space(SMALL), 6)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 6


def test_proposals_depend_on_the_finished_trials_and_the_seed_alone() -> None:
    whole = [p.knobs for p in run(new_study(), space(CONDITIONAL), 12)]
    study = new_study()
    first = run(study, space(CONDITIONAL), 7)
    resumed = new_study()
    resumed.add_trials(study.trials)
    assert [p.knobs for p in first] + [p.knobs for p in run(resumed, space(CONDITIONAL), 5)] == whole
    assert [p.knobs for p in run(new_study(), space(CONDITIONAL), 12, seed=1)] != whole


def test_an_interrupted_trial_that_was_asked_again_changes_no_proposal() -> None:
    whole = [p.knobs for p in run(new_study(), space(CONDITIONAL), 12)]
    study = new_study()
    first = run(study, space(CONDITIONAL), 7)
    lost = search.ask(study, space(CONDITIONAL), {"window": None, "depth": 1, "rate": 0.1}, 0, 3)
    lost.trial.set_user_attr("reason", search.INTERRUPTED)
    study.tell(lost.trial, state=TrialState.FAIL)
    study.enqueue_trial(dict(lost.knobs))
    assert [p.knobs for p in first] + [p.knobs for p in run(study, space(CONDITIONAL), 5)] == whole


def test_the_sampler_learns_where_feasible_configurations_are() -> None:
    depths = [p.knobs["depth"] for p in run(new_study(), space(CONDITIONAL), 40, startup=10)]
    best = [depth for depth in depths[20:] if 25 <= depth <= 100]
    assert len(best) >= 10, depths


def test_an_enqueued_configuration_goes_first() -> None:
    study = new_study()
    study.enqueue_trial({"a": 2, "b": "x"})
    assert search.ask(study, space(SMALL), {"a": 1, "b": None}, 0, 3).knobs == {"a": 2, "b": "x"}


def ended(number: int, state: TrialState, seconds: float, reason: str | None = None) -> Any:
    start = datetime(2026, 1, 1)
    trial = optuna.create_trial(
        state=state,
        values=(1.0, 1.0, 1.0) if state == TrialState.COMPLETE else None,
        user_attrs={} if reason is None else {"reason": reason},
    )
    trial.number, trial.datetime_start, trial.datetime_complete = number, start, start + timedelta(seconds=seconds)
    return trial


def test_a_pause_costs_no_time() -> None:
    """A night lies between the start and the end of the two trials that a kill -9 met."""
    lost = ended(1, TrialState.FAIL, 30_000.0, search.INTERRUPTED)
    told_late = ended(2, TrialState.COMPLETE, 30_000.0)
    told_late.set_user_attr(search.SECONDS, 12.0)
    done = [ended(0, TrialState.COMPLETE, 10.0), lost, told_late]
    assert search.stop(done, 99, 22.0) == "seconds" and search.stop(done, 99, 22.5) is None


STOPS = [
    ("the baseline costs no trial", [(TrialState.COMPLETE, None)], 1, None, None),
    ("the last trial", [(TrialState.COMPLETE, None)] * 3, 2, None, "trials"),
    ("failures count", [(TrialState.COMPLETE, None), (TrialState.PRUNED, "out_of_memory")], 1, None, "trials"),
    ("breakdowns count", [(TrialState.COMPLETE, None), (TrialState.FAIL, "launch_failed")], 1, None, "trials"),
    ("interruptions do not", [(TrialState.COMPLETE, None), (TrialState.FAIL, "interrupted")], 1, None, None),
    ("time is up", [(TrialState.COMPLETE, None)] * 3, 99, 30.0, "seconds"),
    ("time is left", [(TrialState.COMPLETE, None)] * 3, 99, 31.0, None),
]


@pytest.mark.parametrize(("states", "trials", "seconds", "expected"), cases(STOPS))
def test_the_stop_rule(states: list[Any], trials: int, seconds: float | None, expected: str | None) -> None:
    done = [ended(number, state, 10.0, reason) for number, (state, reason) in enumerate(states)]
    assert search.stop(done, trials, seconds) == expected
