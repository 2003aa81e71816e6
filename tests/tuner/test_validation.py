"""The finals of a study: candidates race on the tuning window, the chosen one goes on to held-out traffic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeTestbed, cases, make_spec, make_trace
from tests.tuner.test_study import Log, auto, scales
from tuner import validation
from tuner.deliver import deliver
from tuner.errors import EngineCrashed
from tuner.finals import FIRST_REPLAYS, Candidate
from tuner.ladder import SCALES, below
from tuner.recommend import held, recommend
from tuner.results import StudyResults, load_results
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement
from tuner.serving.testbed import Load
from tuner.spec import StudySpec
from tuner.standing import standing
from tuner.store import Store
from tuner.study import run_study
from tuner.traffic.trace import Trace
from tuner.traffic.trace_file import save_trace
from tuner.validation import REPLAYS_EACH, next_turn
from tuner.whatif import whatif
from tuner.worth import LADDER, proven, replays_of, shown

SPACE = {"parameters": {"max_num_seqs": {"type": "choice", "choices": [16, 14, 12, 11]}}}
"""The fake serves 9.6, 8.4, 7.2 and 6.6 requests/s with these; with int8 (fixed here) 1.5 times as many."""
SETTINGS = {"kv_cache_memory_bytes": 1_000_000, "kv_cache_dtype": "int8"}
Slower = Callable[[int, str, float, int], int | None]
"""(max_num_seqs, purpose, time scale, how often this was asked before) -> the max_num_seqs that answers instead."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "study.db") as store:
        yield store


class NoisyTestbed(FakeTestbed):
    """Some replays are another configuration's, as `slower` has it."""

    def __init__(self, slower: Slower) -> None:
        super().__init__()
        self.slower, self.asked = slower, Counter[tuple[int, str]]()

    def measure(self, config: ServingConfig, load: Load, **asked: Any) -> Measurement:
        seqs = int(config.knobs["max_num_seqs"])
        key = (seqs, asked["purpose"])
        instead = self.slower(seqs, asked["purpose"], load.time_scale, self.asked[key])
        self.asked[key] += 1
        acts = config if instead is None else replace(config, knobs={**config.knobs, "max_num_seqs": instead})
        return replace(super().measure(acts, load, **asked), config=config)


def spec_of(directory: Path, **changes: Any) -> StudySpec:
    changes = {
        "engine": {"settings": SETTINGS, "baseline": {"max_num_seqs": 11}},
        "budget": {"trials": 2, "startup_trials": 2, "finalists": 2, "examine": False, "plateau": False},
        "traffic": auto(directory),
        "search_space": SPACE,
    } | changes
    return make_spec(directory, **changes)


def run(
    spec: StudySpec,
    store: Store,
    slower: Slower,
    log: Log | None = None,
    resume: bool = False,
    tried: Sequence[int] = (14, 16),
) -> NoisyTestbed:
    """tried: max_num_seqs of the trials; later ones begin at the load that earlier ones hold."""
    testbed, first = NoisyTestbed(slower), [{"max_num_seqs": seqs} for seqs in tried]
    run_study(spec, store, testbed, log or Log(), {"machine": "fake"}, resume, first)
    return testbed


def by_seqs(results: StudyResults, seqs: int) -> int:
    return next(trial.number for trial in results.trials if trial.knobs["max_num_seqs"] == seqs)


def lucky(seqs: int, purpose: str, scale: float, times: int) -> int | None:
    """The search sees the 12 as fast as the 16."""
    return 16 if (seqs, purpose) == (12, "trial") else None


BY_LUCK = (14, 12)


def test_a_winner_of_the_search_by_luck_loses_the_finals(tmp_path: Path, store: Store) -> None:
    log = Log()
    testbed = run(spec_of(tmp_path), store, lucky, log, tried=BY_LUCK)
    results = load_results(store, "fake")
    best = max(results.trials, key=lambda trial: trial.time_scale or 0.0)
    assert best.knobs["max_num_seqs"] == 12, "as the search saw it"
    found = recommend(results)
    assert found.trial is not None and found.trial.knobs["max_num_seqs"] == 14 and found.deployable
    repeats = Counter(call.config.knobs["max_num_seqs"] for call in testbed.calls if call.purpose == "repeat")
    assert repeats.keys() == {11, 12, 14}, "the baseline and as many finalists as the study has"
    assert all(count >= FIRST_REPLAYS for count in repeats.values())
    assert repeats.total() <= 3 * REPLAYS_EACH
    heldout = [call.config.knobs["max_num_seqs"] for call in testbed.calls if call.purpose == "holdout"]
    assert set(heldout) == {14, 11}, "of the finalists the chosen one alone"
    assert any(note.startswith("finals: after ") and "the best of 3 with probability" in note for note in log.notes)


def test_what_is_claimed_is_no_more_than_the_lucky_reading(tmp_path: Path, store: Store) -> None:
    run(spec_of(tmp_path), store, lucky, tried=BY_LUCK)
    results = load_results(store, "fake")
    number = by_seqs(results, 12)
    searched = results.trials[number].time_scale
    claim = shown(results, number, "repeat")
    assert claim is not None and searched is not None and claim.time_scale < searched
    assert proven(results, results.trials[number]).time_scale == claim.time_scale


def test_one_slow_replay_of_three_costs_no_finalist_its_place(tmp_path: Path, store: Store) -> None:
    def slow_once(seqs: int, purpose: str, scale: float, times: int) -> int | None:
        return 4 if (seqs, purpose, times) == (16, "repeat", 0) else None

    run(spec_of(tmp_path), store, slow_once)
    results = load_results(store, "fake")
    number = by_seqs(results, 16)
    assert not all(v.holds for v in results.validations if (v.trial, v.purpose) == (number, "repeat"))
    found = recommend(results)
    assert number in held(results) and found.deployable
    assert found.trial is not None and found.trial.number == number


def test_a_study_of_which_nothing_holds_the_recorded_rate_is_finished_too(tmp_path: Path, store: Store) -> None:
    testbed = run(spec_of(tmp_path), store, lambda seqs, purpose, scale, times: 7)
    found = recommend(load_results(store, "fake")).trial
    assert found is not None and proven(load_results(store, "fake"), found).time_scale < 1
    assert not [call for call in testbed.calls if call.purpose == "recorded_rate"]
    assert standing(store, "fake").phase == "finished"


@pytest.mark.parametrize("after", [1, 4, 8])
def test_an_interrupted_race_goes_on_where_it_stopped(tmp_path: Path, store: Store, after: int) -> None:
    whole = run(spec_of(tmp_path / "whole"), whole_store := Store(tmp_path / "whole.db"), lucky, tried=BY_LUCK)
    spec, repeats = spec_of(tmp_path / "cut"), Counter[str]()

    def interrupted(seqs: int, purpose: str, scale: float, times: int) -> int | None:
        repeats[purpose] += 1
        if purpose == "repeat" and repeats[purpose] > after:
            raise KeyboardInterrupt
        return lucky(seqs, purpose, scale, times)

    with pytest.raises(KeyboardInterrupt):
        run(spec, store, interrupted, tried=BY_LUCK)
    assert recommend(load_results(store, "fake")).trial is not None, "what is known so far can be read"
    rest = run(spec, store, lucky, resume=True)
    made = [(v.trial, v.purpose, v.time_scale) for v in load_results(store, "fake").validations]
    assert made == [(v.trial, v.purpose, v.time_scale) for v in load_results(whole_store, "fake").validations]
    assert len(scales(rest, "repeat")) == len(scales(whole, "repeat")) - after
    assert next_turn(load_results(store, "fake")) is None
    whole_store.close()


def test_a_chosen_one_that_fails_on_held_out_traffic_gives_way_to_the_next(tmp_path: Path, store: Store) -> None:
    def elsewhere(seqs: int, purpose: str, scale: float, times: int) -> int | None:
        return 1 if (seqs, purpose) == (16, "holdout") else None

    run(spec_of(tmp_path), store, elsewhere)
    results = load_results(store, "fake")
    found = recommend(results)
    assert found.trial is not None and found.trial.knobs["max_num_seqs"] == 14 and found.deployable
    assert any(f"Trial {by_seqs(results, 16)} missed" in reason for reason in found.reasons)
    assert {v.trial for v in results.validations if v.purpose == "recorded_rate"} == {0, found.trial.number}


@pytest.mark.parametrize(
    ("misses", "replays", "best"),
    cases([("a slow moment of three", 1, 3, 16), ("missed twice: the next goes to held-out traffic", 2, 2, 14)]),
)
def test_a_miss_at_the_recorded_rate_is_decided_before_another_is_recommended(
    tmp_path: Path, store: Store, misses: int, replays: int, best: int
) -> None:
    def slower(seqs: int, purpose: str, scale: float, before: int) -> int | None:
        return 4 if purpose == "recorded_rate" and seqs == 16 and before < misses else None

    testbed = run(spec_of(tmp_path), store, slower)
    results = load_results(store, "fake")
    found = recommend(results)
    assert found.trial is not None and found.trial.knobs["max_num_seqs"] == best
    assert {one.purpose for one in results.validations if one.trial == found.trial.number} == {
        "repeat", "holdout", "recorded_rate",
    }  # fmt: skip
    assert testbed.asked[16, "recorded_rate"] == replays and next_turn(results) is None


def test_a_claim_may_lie_between_two_rungs_and_gives_way_by_whole_ones(tmp_path: Path, store: Store) -> None:
    """The 12 holds up to 1.08 times the recorded rate: it claims 1.072, and on held-out traffic gives way to 1."""

    def elsewhere(seqs: int, purpose: str, scale: float, times: int) -> int | None:
        return 10 if (seqs, purpose) == (12, "holdout") else None

    budget = {"trials": 1, "startup_trials": 1, "finalists": 1, "examine": False, "plateau": False}
    testbed = run(spec_of(tmp_path, budget=budget), store, elsewhere, tried=(12,))
    results = load_results(store, "fake")
    claim = shown(results, by_seqs(results, 12), "repeat")
    assert claim is not None and claim.time_scale == 1.072
    assert scales(testbed, "holdout")[:3] == [1.072, 1.072, 1.0]


def test_the_finals_have_every_rung_and_one_between_any_two() -> None:
    assert LADDER[::2] == SCALES and len(LADDER) == 2 * len(SCALES) - 1
    assert list(LADDER) == sorted(LADDER)
    for rung, between in zip(SCALES, LADDER[1::2], strict=False):
        assert below(between) == rung
    assert [below(rung) for rung in SCALES] == [None, *SCALES[:-1]]


class DenseTestbed(FakeTestbed):
    """Twice as quick on held-out traffic, where requests come twice as fast; the 14 is no better than the 11 there."""

    def measure(self, config: ServingConfig, load: Load, **asked: Any) -> Measurement:
        self.slowness = lambda call: 1.0
        if load.window == "holdout":
            self.slowness = lambda call: 0.5 * int(config.knobs["max_num_seqs"]) / 11
        return super().measure(config, load, **asked)


def test_goodputs_of_windows_with_other_rates_are_not_compared(tmp_path: Path, store: Store) -> None:
    budget = {"trials": 1, "startup_trials": 1, "finalists": 1, "examine": False, "plateau": False}
    spec = spec_of(tmp_path, budget=budget)
    at = [i * 0.1 for i in range(40)] + [4 + i * 0.05 for i in range(80)]
    one = make_trace().requests[0]
    requests = tuple(replace(one, id=f"r{i}", arrival=arrival) for i, arrival in enumerate(at))
    save_trace(Trace(requests, {"source": "made for a test"}, seconds=8.0), tmp_path / "trace.jsonl")
    run_study(spec, store, DenseTestbed(), Log(), {"machine": "fake"}, False, [{"max_num_seqs": 14}])
    results = load_results(store, "fake")
    held_out = {number: shown(results, number, "holdout") for number in (0, 1)}
    assert [one is not None and (one.time_scale, one.goodput.value) for one in held_out.values()] == [(1.0, 20.0)] * 2
    found = recommend(results)
    assert found.trial is not None and found.trial.number == 0, found.verdict


ONE_LOAD = [
    ("a slow moment is none", 1, True),
    ("two misses are one", 2, False),
]


def test_one_slow_moment_of_the_baseline_at_one_load_makes_nobody_better(tmp_path: Path, store: Store) -> None:
    def slow(seqs: int, purpose: str, scale: float, times: int) -> int | None:
        return 4 if purpose == "baseline" else None

    spec = spec_of(tmp_path, traffic={**auto(tmp_path), "time_scale": 1.0})
    run(spec, store, slow)
    results = load_results(store, "fake")
    assert results.baseline.state == "infeasible" and 0 in held(results)
    found = recommend(results)
    assert found.trial is not None and found.trial.number == 0 and found.deployable, found.verdict
    assert found.verdict.startswith("Keep the baseline: 10.00 ")
    assert "In the search it missed slo:chat by a factor of " in found.reasons[0]
    unchanged = tmp_path / "same.yaml"
    unchanged.write_text("slos: {chat: {ttft: 0.4}}")
    assert whatif(store, "fake", unchanged).holds
    deliver(results, found, tmp_path)
    written = (tmp_path / "recommended.yaml").read_text()
    assert "Keep the baseline" in written and "# SHA-256 begins: traffic.trace " in written


@pytest.mark.parametrize(("misses", "holds"), cases(ONE_LOAD))
def test_at_one_load_two_of_three_replays_decide(tmp_path: Path, store: Store, misses: int, holds: bool) -> None:
    def slow(seqs: int, purpose: str, scale: float, times: int) -> int | None:
        return 2 if (seqs, purpose) == (16, "repeat") and times < misses else None

    spec = spec_of(tmp_path, traffic={**auto(tmp_path), "time_scale": 1.15})
    run(spec, store, slow)
    results = load_results(store, "fake")
    number = by_seqs(results, 16)
    assert len(replays_of(results, number, "repeat")) == (3 if holds else 2)
    assert (number in held(results)) == holds


def test_a_configuration_races_once_however_often_it_was_tried(tmp_path: Path, store: Store) -> None:
    space = {"parameters": {"max_num_seqs": {"type": "choice", "choices": [11, 16]}}}
    budget = {"trials": 4, "startup_trials": 2, "finalists": 2, "examine": False, "plateau": False}
    testbed = run(spec_of(tmp_path, budget=budget, search_space=space), store, lambda *asked: None, tried=(16, 16))
    results = load_results(store, "fake")
    assert sum(trial.state == "feasible" for trial in results.trials) > 2, "a replicate among them"
    assert {call.config.knobs["max_num_seqs"] for call in testbed.calls if call.purpose == "repeat"} == {11, 16}
    assert {v.trial for v in results.validations if v.purpose == "repeat"} == {0, 1}


def test_an_interrupted_descent_of_the_baseline_goes_on(tmp_path: Path, store: Store) -> None:
    def slow_then_stopped(seqs: int, purpose: str, scale: float, times: int) -> int | None:
        if purpose == "baseline" and times:
            raise KeyboardInterrupt
        return 4 if purpose == "baseline" else None

    with pytest.raises(KeyboardInterrupt):
        run(spec_of(tmp_path), store, slow_then_stopped)
    testbed = run(spec_of(tmp_path), store, lambda *asked: None, resume=True)
    assert scales(testbed, "baseline") == [0.87]
    baseline = load_results(store, "fake").baseline
    assert (baseline.state, baseline.time_scale) == ("feasible", 0.87)
    assert [rung for rung, _ in store.optuna_trials("fake")[0].user_attrs["rungs"]] == [1.0, 0.87]


def test_a_larger_budget_of_a_resumed_study_has_finals_too(tmp_path: Path, store: Store) -> None:
    budget = {"trials": 2, "startup_trials": 2, "finalists": 0, "examine": False, "plateau": False}
    run(spec_of(tmp_path, budget=budget), store, lambda *asked: None)
    assert recommend(load_results(store, "fake")).trial == load_results(store, "fake").baseline
    more = spec_of(tmp_path, budget=budget | {"trials": 3, "finalists": 1}, cost={"price_per_hour": 2.0})
    testbed = run(more, store, lambda *asked: None, resume=True)
    assert any(call.purpose == "repeat" and call.config.knobs["max_num_seqs"] == 16 for call in testbed.calls)
    results, found = load_results(store, "fake"), standing(store, "fake")
    assert (found.asked, found.budget) == (3, 3)
    best = recommend(results)
    assert best.trial is not None and best.trial.knobs["max_num_seqs"] == 16
    assert any(gain.name.startswith("goodput per ") for gain in best.gains)


@pytest.mark.parametrize(
    ("above", "state", "begins"),
    cases([("under any load", 0.0, "failed", 0.497), ("beyond the load that it holds", 1.2, "feasible", 1.0)]),
)
def test_a_baseline_that_crashes_ends_no_study(
    tmp_path: Path, store: Store, above: float, state: str, begins: float
) -> None:
    def crashing(seqs: int, purpose: str, scale: float, times: int) -> int | None:
        if seqs == 11 and scale > above:
            raise EngineCrashed("exit status 4")
        return None

    log = Log()
    run(spec_of(tmp_path), store, crashing, log)
    results = load_results(store, "fake")
    assert (results.baseline.state, results.time_scale) == (state, begins)
    assert any(note.startswith("calibration x1.521: engine_crashed: exit status 4") for note in log.notes) == (
        above > 0
    )
    found = recommend(results)
    assert found.trial is not None and found.trial.knobs["max_num_seqs"] == 16 and found.deployable


@pytest.mark.parametrize(
    ("load", "asked"), cases([("the study's own load is less", 0.5, False), ("it is more", 1.15, True)])
)
def test_the_recorded_rate_is_not_asked_of_who_need_not_hold_it(
    tmp_path: Path, store: Store, load: float, asked: bool
) -> None:
    spec = spec_of(tmp_path, traffic={**auto(tmp_path), "time_scale": load})
    testbed = run(spec, store, lambda seqs, purpose, scale, times: 7 if load < 1 else None)
    assert ("recorded_rate" in {call.purpose for call in testbed.calls}) == asked
    assert recommend(load_results(store, "fake")).deployable


def test_the_first_repeat_alone_asks_the_last_probes(tmp_path: Path, store: Store) -> None:
    testbed = run(spec_of(tmp_path), store, lambda *asked: None)
    asked = [call.probes for call in testbed.calls if call.purpose == "repeat"]
    assert len(asked) > 6 and not any(asked), "every probe was asked in the search, as none is for finalists alone"


def test_a_race_that_everybody_lost_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = [Candidate(number, 0.0, ((1.0, 0.2),), out=True) for number in (1, 2)]
    monkeypatch.setattr(validation, "entrants", lambda results: lost)
    monkeypatch.setattr(validation, "field", lambda results: (lost, 3.0))
    assert validation._race_in_words(None) == "finals: of 2 candidates none stands"  # type: ignore[arg-type]
