"""One recommendation by the stated rule: whom it picks, when it keeps the baseline, when it abstains."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import cases
from tuner.recommend import RULE, recommend, slo_margin
from tuner.results import StudyResults, TrialResult, TrialState, ValidationResult
from tuner.scoring.metrics import ClassMetrics, Interval, TrafficMetrics
from tuner.scoring.quality import QualityScore
from tuner.spec import parse_spec
from tuner.stored import ValidationFailure
from tuner.worth import outdoes, proven

SPEC = parse_spec(
    {
        "name": "s",
        "model": "m",
        "traffic": {"trace": "t"},
        "slos": {"chat": {"ttft": 1.0}},
        "quality": {"probes": "p"},
        "search_space": "x",
        "tail": {"slo_class": "chat"},
    },
    source="study.yaml",
    base=Path("/"),
)


def _traffic(goodput: float, spread: float = 0.2) -> TrafficMetrics:
    chat = ClassMetrics("chat", 10, 10, 10, {}, Interval(1, 0.7, 1), 0.95, 0.0, {"ttft": {95: 1 / (1 + goodput)}})
    interval = Interval(goodput, goodput - spread, goodput + spread)
    return TrafficMetrics(10.0, 5.0, interval, 1.0, {"chat": chat}, {}, {})


def trial_of(number: int, goodput: float, **changes: Any) -> TrialResult:
    """A trial on the feasible front with a margin of 0.5, full quality and its own value of one knob."""
    margin, quality = changes.pop("margin", 0.5), changes.pop("quality", 1.0)
    state: TrialState = changes.pop("state", "feasible" if margin >= 0 else "infeasible")
    values: dict[str, Any] = {
        "number": number,
        "state": state,
        "knobs": {"max_num_seqs": number, "kv_window": None, "block_size": 16},
        "objectives": (goodput, quality, 0.1),
        "constraints": {"quality:text": -0.01, "slo:chat": -margin},
        "traffic": _traffic(goodput),
        "quality": QualityScore(quality, quality - 0.01, min(quality + 0.01, 1.0), ()),
        "on_front": state == "feasible",
    }
    return TrialResult(**{**values, **changes})


def validation_of(trial: int, violation: float, purpose: str = "holdout") -> ValidationResult:
    return ValidationResult(trial, purpose, "holdout", 2.0, _traffic(trial + 1.0), {"slo:chat": violation}, 0.2)


def _failed(number: int) -> TrialResult:
    return TrialResult(number, "failed", {}, None, {}, None, None, reason="out_of_memory")


def study_of(
    *trials: TrialResult, validations: tuple[ValidationResult, ...] = (), failures: tuple[ValidationFailure, ...] = ()
) -> StudyResults:
    return StudyResults(SPEC, trials, validations, 2.0, {}, {}, failures)


BAD_BASELINE = trial_of(0, 1.0, margin=-0.4)


@pytest.mark.parametrize(
    "study, expected",
    cases(
        [
            ("more goodput", study_of(BAD_BASELINE, trial_of(1, 2.0), trial_of(2, 3.0)), 2),
            ("infeasible goodput is none", study_of(BAD_BASELINE, trial_of(1, 2.0), trial_of(2, 9.0, margin=-0.1)), 1),
            (
                "a tie goes to the larger margin",
                study_of(BAD_BASELINE, trial_of(1, 3.1), trial_of(2, 3.0, margin=0.9)),
                2,
            ),
            (
                "a larger margin is no tie for a trial that another beats in everything",
                study_of(BAD_BASELINE, trial_of(1, 3.1), trial_of(2, 3.0, margin=0.9, on_front=False)),
                1,
            ),
            (
                "margin before quality",
                study_of(BAD_BASELINE, trial_of(1, 3.0, margin=0.9, quality=0.9), trial_of(2, 3.0)),
                1,
            ),
            (
                "margins alike, higher quality",
                study_of(BAD_BASELINE, trial_of(1, 3.0, quality=0.9), trial_of(2, 2.9)),
                2,
            ),
            (
                "all alike, fewer changes",
                study_of(BAD_BASELINE, trial_of(1, 3.0, knobs={"max_num_seqs": 1, "kv_window": 64}), trial_of(2, 3.0)),
                2,
            ),
            (
                "a margin beyond the tie buys nothing",
                study_of(BAD_BASELINE, trial_of(1, 3.0), trial_of(2, 2.5, margin=0.9)),
                1,
            ),
            (
                "the largest lower bound, not the largest value",
                study_of(BAD_BASELINE, trial_of(1, 3.4, traffic=_traffic(3.4, 2.0), margin=0.1), trial_of(2, 3.0)),
                2,
            ),
            ("a baseline within the intervals is kept", study_of(trial_of(0, 2.7), trial_of(1, 3.0, margin=0.9)), 0),
            ("a baseline below them is not", study_of(trial_of(0, 2.5), trial_of(1, 3.0)), 1),
            (
                "the tie-break chooses among those that beat the baseline",
                study_of(trial_of(0, 2.3), trial_of(1, 3.0), trial_of(2, 2.6, margin=0.9)),
                1,
            ),
            ("only the baseline is feasible", study_of(trial_of(0, 2.0), trial_of(1, 9.0, margin=-1.0)), 0),
            ("the baseline could not be measured", study_of(_failed(0), trial_of(1, 1.0)), 1),
        ]
    ),
)
def test_the_rule(study: StudyResults, expected: int) -> None:
    found = recommend(study)
    assert found.trial is not None and found.trial.number == expected
    assert found.deployable and found.rule == RULE and found.least_violating is None
    assert expected not in [trial.number for trial in found.runners_up]


@pytest.mark.parametrize(
    "violations, expected, deployable",
    cases(
        [
            ("the best holds", {1: [-0.1], 2: [-0.1]}, 2, True),
            ("the best misses, another holds", {1: [-0.1], 2: [0.2]}, 1, True),
            ("one of two measurements missed", {1: [-0.1], 2: [-0.3, 0.2]}, 1, True),
            ("an untested one does not outrank one that held", {1: [-0.1]}, 1, True),
            ("none holds", {1: [0.1], 2: [0.2]}, 2, False),
        ]
    ),
)
def test_candidates_are_held_to_their_validations(
    violations: Mapping[int, list[float]], expected: int, deployable: bool
) -> None:
    validations = tuple(validation_of(trial, value) for trial, values in violations.items() for value in values)
    calibration = validation_of(expected, 1.0, purpose="calibration")
    found = recommend(
        study_of(BAD_BASELINE, trial_of(1, 2.0), trial_of(2, 3.0), validations=(*validations, calibration))
    )
    assert found.trial is not None and (found.trial.number, found.deployable) == (expected, deployable)
    told = " ".join([found.verdict, *found.reasons])
    for trial, values in violations.items():
        missed = f"missed slo:chat by a factor of {math.exp(max(values)):.3g} on held-out traffic at 2x"
        assert (missed in told) == (max(values) > 0), trial


def test_a_baseline_that_missed_its_validation_is_no_alternative() -> None:
    validations = (validation_of(0, 0.2), validation_of(1, -0.1))
    found = recommend(study_of(trial_of(0, 2.9), trial_of(1, 3.0), validations=validations))
    assert found.trial is not None and (found.trial.number, found.deployable) == (1, True)


@pytest.mark.parametrize(
    "held, expected, deployable",
    cases(
        [
            ("another holds", (1,), 1, True),
            ("another holds, and the failed one held elsewhere", (1, 2), 1, True),
            ("nothing else was tested", (), 2, False),
            ("the failed one held elsewhere, nothing else was tested", (2,), 2, False),
        ]
    ),
)
def test_a_failed_validation_is_a_missed_one(held: tuple[int, ...], expected: int, deployable: bool) -> None:
    crash = ValidationFailure(2, "holdout", "holdout", 2.0, "engine_crashed", "signal 11")
    validations = tuple(validation_of(trial, -0.1, "repeat") for trial in held)
    found = recommend(
        study_of(BAD_BASELINE, trial_of(1, 2.0), trial_of(2, 3.0), validations=validations, failures=(crash,))
    )
    assert found.trial is not None and (found.trial.number, found.deployable) == (expected, deployable)
    told = " ".join([found.verdict, *found.reasons])
    assert "failed (engine_crashed) on held-out traffic at 2x." in told
    assert "not measured again" not in told


def test_where_none_holds_that_was_measured_again_an_untested_one_is_not_deployable() -> None:
    others = (trial_of(1, 3.0), trial_of(2, 3.0, margin=0.9))
    found = recommend(study_of(BAD_BASELINE, *others, validations=(validation_of(1, 0.2),)))
    assert found.trial is not None and (found.trial.number, found.deployable) == (2, False)
    assert found.verdict.endswith("but it was not measured again, and none held that was.")
    untested = recommend(study_of(BAD_BASELINE, *others, validations=(validation_of(0, 0.2),)))
    assert untested.trial is not None and untested.deployable, "a study without finalists"


def test_what_was_never_measured_again_is_said_to_be_so() -> None:
    assert "It was not measured again after the search." in recommend(study_of(BAD_BASELINE, trial_of(1, 2.0))).reasons


def test_changes_that_buy_the_same_share_a_line() -> None:
    knobs = {"max_num_seqs": 64, "kv_window": 128, "block_size": 32}
    ablations = tuple(
        dataclasses.replace(validation_of(1, violation, "ablation"), window=f"without {knob}")
        for knob, violation in (("max_num_seqs", -0.1), ("block_size", -0.2), ("kv_window", 0.3))
    )
    reasons = recommend(study_of(BAD_BASELINE, trial_of(1, 3.0, knobs=knobs), validations=ablations)).reasons
    without = recommend(study_of(BAD_BASELINE, trial_of(1, 3.0, knobs=knobs), validations=ablations[:2])).reasons
    assert "kv_window 128 instead of none: without it the rest was not measured." in without, "its engine failed"
    assert (
        "max_num_seqs 64 instead of 0, block_size 32 instead of 16: none of them needed by itself at this load; the "
        "rest holds 2x without any one of them."
    ) in reasons
    assert "kv_window 128 instead of none: without it the rest does not hold even 2x." in reasons
    assert not [reason for reason in reasons if reason.startswith("It differs")], "said already"


@pytest.mark.parametrize(
    ("lead", "expected"), cases([("by a hair's breadth", 0.004, 0), ("by as much as the repeats can tell", 0.07, 1)])
)
def test_a_rung_more_is_not_enough_where_the_finals_cannot_tell_it_from_the_baseline(
    lead: float, expected: int
) -> None:
    """Capacities on either side of what a claim of 1.875 takes; 1.749 is the next below."""
    means = (0.699, 0.699 + lead)
    trials = [trial_of(number, 20.0, time_scale=2.011, rungs=((2.011, -0.1),)) for number in (0, 1)]
    repeats = [
        ValidationResult(number, "repeat", "tune", 2.011, _traffic(20.0, 0.01), {"slo:chat": 3 * (0.69863 - mean)}, 0.1)
        for number, mean in enumerate(means)
        for _ in range(3)
    ]
    results = study_of(*trials, validations=tuple(repeats))
    claims = [proven(results, trial) for trial in trials]
    assert claims[0].goodput.high < claims[1].goodput.low
    probability, found = outdoes(results, 1, 0), recommend(results)
    assert probability is not None and (probability >= 0.95) == (expected == 1)
    assert found.trial is not None and found.trial.number == expected
    said = f"it holds more load than the baseline with probability {probability:.3f}"
    assert any(said in reason for reason in found.reasons) == (expected == 1)


def test_a_replicate_is_no_other_configuration() -> None:
    again, twice = trial_of(1, 3.5, knobs=trial_of(0, 2.0).knobs), trial_of(3, 3.1, knobs=trial_of(2, 3.0).knobs)
    study = study_of(trial_of(0, 2.0), again)
    assert [trial.number for trial in study.candidates] == [0]
    kept = recommend(study)
    assert kept.trial is not None and kept.trial.number == 0, "a lucky reading of the baseline is the baseline"
    found = recommend(study_of(trial_of(0, 2.0), again, trial_of(2, 3.0), twice))
    assert found.trial is not None and found.trial.number == 2 and not found.runners_up[1:]
    unmeasured = study_of(_failed(0), trial_of(1, 3.0, knobs=_failed(0).knobs))
    assert [trial.number for trial in unmeasured.candidates] == [1]


TTFT = "chat p95 ttft at its load"


def test_gains_stand_beside_the_baseline_with_their_intervals() -> None:
    found = recommend(study_of(BAD_BASELINE, trial_of(1, 3.0)))
    gains = {gain.name: gain for gain in found.gains}
    assert gains.keys() == {"goodput", "load", "quality", TTFT}
    assert (gains["load"].baseline, gains["load"].recommended, gains["load"].unit) == (2.0, 2.0, "x recorded")
    assert (gains["goodput"].baseline, gains["goodput"].recommended, gains["goodput"].unit) == (1.0, 3.0, "requests/s")
    assert gains["goodput"].recommended_interval == Interval(3.0, 2.8, 3.2)
    assert (gains[TTFT].baseline, gains[TTFT].recommended) == (0.5, 0.25)
    assert gains[TTFT].baseline_interval is None
    assert {gain.baseline for gain in recommend(study_of(_failed(0), trial_of(1, 3.0))).gains} == {None}


def test_an_abstention_names_the_closest_trial_and_what_binds() -> None:
    forgetful = {"quality:text": 0.8, "slo:chat": -1.0}
    study = study_of(
        BAD_BASELINE, trial_of(1, 2.0, margin=-0.1), trial_of(2, 9.0, state="infeasible", constraints=forgetful)
    )
    found = recommend(study)
    assert found.trial is None and not found.deployable
    assert found.least_violating is not None and found.least_violating.number == 1
    assert (found.binding_constraint, found.binding_violation) == ("slo:chat", 0.1)
    assert "trial 1" in found.verdict and "misses slo:chat by a factor of 1.11." in found.verdict
    assert found.reasons == ("slo:chat is missed by 2 of 3 trials.", "quality:text is missed by 1 of 3 trials.")


def test_nothing_measured_is_an_abstention() -> None:
    found = recommend(study_of(_failed(0), _failed(1)))
    assert found.trial is None and found.least_violating is None and not found.deployable


margins = st.floats(-1.0, 1.0)
trials = st.builds(trial_of, st.just(0), st.floats(0.5, 5.0), margin=margins, quality=st.floats(0.5, 1.0))
studies = st.lists(trials, min_size=1, max_size=8).map(
    lambda drawn: [dataclasses.replace(trial, number=i, knobs={"max_num_seqs": i}) for i, trial in enumerate(drawn)]
)


@given(studies, st.randoms(use_true_random=False))
def test_the_order_of_trials_changes_nothing_and_the_rule_is_kept(drawn: list[TrialResult], rng: random.Random) -> None:
    shuffled = drawn[1:]
    rng.shuffle(shuffled)
    found = recommend(study_of(*drawn))
    assert recommend(study_of(drawn[0], *shuffled)) == found

    feasible = [trial for trial in drawn if slo_margin(trial) >= 0]
    assert (found.trial is None) == (not feasible)
    if found.trial is not None and found.trial.traffic is not None:
        assert found.trial.state == "feasible"
        best = max(t.traffic.goodput.low for t in feasible if t.traffic is not None)
        assert found.trial.traffic.goodput.high >= best or found.trial.number == 0
