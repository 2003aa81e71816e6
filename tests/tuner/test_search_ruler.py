"""The ruler of the search: tables that answer for an engine, and studies replayed on them."""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from benchmarks import search as ruler
from benchmarks.search_finals import Recommended, holds_out, true_feasible, with_finals, without_finals
from benchmarks.search_race import front_share, race, regret
from benchmarks.search_smooth import smoothed
from benchmarks.search_strategies import Ours, Outcome, contenders
from benchmarks.search_table import Knobs, Noise, Table, load_table
from search_spaces.space import key, load_space
from tests.tuner.search_tables import KNOBS, LADDER, ln_capacity, write_table
from tuner import search
from tuner.proposals import RANDOM_EVERY

FEW: dict[str, tuple[Any, ...]] = {**KNOBS, "num_speculative_tokens": (0, 1), "max_num_batched_tokens": (512,)}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return load_table(write_table(tmp_path_factory.mktemp("tables"), knobs=FEW))


class Fixed:
    """Asks for what it was given, in order."""

    def __init__(self, knobs: list[Knobs]) -> None:
        self.left, self.told = knobs, list[Outcome]()

    def ask(self) -> Knobs:
        return self.left.pop(0)

    def tell(self, outcome: Outcome) -> None:
        self.told.append(outcome)


def ranked(table: Table) -> list[Knobs]:
    """Feasible configurations, the best first."""
    feasible = [one for one in table.configurations if table.goodputs[key(one)] > 0]
    return sorted(feasible, key=lambda one: -table.goodputs[key(one)])


def test_the_table_knows_the_capacity_that_the_closed_form_has(table: Table) -> None:
    for one in table.configurations:
        if key(one) not in table.failures:
            held = sum(math.log(scale) <= ln_capacity(one) for scale in LADDER) - 1
            assert table.capacities[key(one)] == held
            assert (table.goodputs[key(one)] > 0) == (one["kv_window"] is None)
    assert {
        (one["kv_cache_dtype"], one["kv_window"]) for one in table.configurations if key(one) in table.failures
    } == {("int8", 128)}


def test_what_holds_holds_below_and_what_misses_misses_above(table: Table) -> None:
    for one in ranked(table)[:10]:
        worst = [table.truth(one, rung).worst for rung in range(len(LADDER))]
        assert worst == sorted(worst)
        seconds = [table.truth(one, rung).seconds for rung in range(8)]
        assert seconds == sorted(seconds, reverse=True), "a faster replay is a shorter one"


def test_the_noise_is_that_of_the_repeats(table: Table) -> None:
    """write_table draws it with a standard deviation of 0.1; five repeats a configuration estimate it."""
    one, draw = ranked(table)[0], random.Random(0)
    seen = [table.observe(one, 5, draw).worst - table.truth(one, 5).worst for _ in range(400)]
    assert sum(seen) / 400 == pytest.approx(0, abs=0.03)
    assert math.sqrt(sum(value**2 for value in seen) / 400) == pytest.approx(0.1, abs=0.03)


def test_smoothing_takes_the_slow_moments_out(tmp_path: Path) -> None:
    """One cell in fifty was measured three rungs too low: the fit gives it back what its neighbours show."""
    from_file = load_table(write_table(tmp_path, knobs=FEW))
    slowed = dict(from_file.measured)
    hit = list(slowed)[::50]
    for name in hit:
        slowed[name] = {rung - 3: found for rung, found in slowed[name].items()}
    damaged = replace(from_file, measured=slowed)
    repaired = smoothed(damaged)
    lost = [from_file.capacities[name] - damaged.capacities[name] for name in hit]
    left = [abs(from_file.capacities[name] - repaired.capacities[name]) for name in hit]
    assert min(lost) >= 2 and sum(left) < sum(lost) / 2
    off = [abs(from_file.capacities[name] - repaired.capacities[name]) for name in slowed]
    assert sum(off) / len(off) < 1


def test_a_trial_starts_at_the_highest_rung_that_was_held_and_climbs(table: Table) -> None:
    best, worst = ranked(table)[0], ranked(table)[-1]
    strategy = Fixed([best, worst])
    done = race(table, strategy, seed=0, trials=2)
    baseline, first, second = done.outcomes
    assert [outcome.knobs for outcome in strategy.told] == [table.baseline, best, worst]
    assert first.rungs[0][0] == LADDER[baseline.held] and first.held > baseline.held
    assert len(second.rungs) == 1 and second.rungs[0][0] == LADDER[first.held] and not second.feasible
    assert first.goodput > baseline.goodput
    assert done.steps[-1].regret <= 0.14 < done.steps[0].regret
    assert [step.seconds for step in done.steps] == sorted(step.seconds for step in done.steps)


def test_a_floor_that_is_missed_ends_the_climb_and_a_crash_costs_a_start(table: Table) -> None:
    window = next(one for one in table.configurations if one["kv_window"] == 256)
    crashing = next(one for one in table.configurations if key(one) in table.failures)
    done = race(table, Fixed([window, crashing]), seed=0, trials=2)
    assert done.outcomes[1].held == -1
    assert done.outcomes[2].constraints == {} and done.steps[-1].crashes == 1


def test_regret_and_front_are_of_the_truth(table: Table) -> None:
    best = ranked(table)[0]
    assert regret(table, best) == 0.0 and regret(table, None) == 1.0
    assert regret(table, next(one for one in table.configurations if one["kv_window"] == 256)) == 1.0
    assert front_share(table, table.configurations) == 1.0
    assert 0 < front_share(table, [best]) < 1 and front_share(table, []) == 0.0


def test_a_claim_beyond_the_capacity_is_not_truly_feasible(table: Table) -> None:
    best = ranked(table)[0]
    capacity = table.capacities[key(best)]
    claims = {rung: Recommended(best, 2 * rung, 1.0, 0.0) for rung in range(capacity - 2, capacity + 3)}
    assert true_feasible(table, claims[capacity]) and not true_feasible(table, claims[capacity + 1])
    assert holds_out(table, claims[capacity - 2], seed=0) == 1.0
    assert holds_out(table, claims[capacity + 2], seed=0) == 0.0


def test_no_more_requests_are_good_than_arrive(table: Table) -> None:
    lucky = replace(table, noises=(Noise({}, goodput=0.5, tail=0.0),))
    assert lucky.observe(ranked(table)[0], 5, random.Random(0)).goodput == table.rate * LADDER[5]


def test_the_finals_have_a_load_between_any_two_rungs(table: Table) -> None:
    assert table.halved.ladder[::2] == table.ladder
    for one in ranked(table):
        assert table.halved.capacities[key(one)] // 2 == table.capacities[key(one)]
    between = [one for one in ranked(table) if table.halved.capacities[key(one)] % 2]
    assert 0 < len(between) < len(ranked(table))


def test_recommendations_are_tied_when_their_finals_could_not_tell_them_apart(table: Table) -> None:
    best, worst = ranked(table)[0], ranked(table)[-1]
    apart = abs(table.ln_capacities[key(best)] - table.ln_capacities[key(worst)])
    for error, tied in ((0.0, False), (apart / 4, False), (apart / 2, True)):
        left, right = Recommended(best, 1, 1.0, 0.0, error), Recommended(worst, 1, 1.0, 0.0, error)
        assert ruler._tied(table, left, right) == tied, "1.96 sqrt(2) = 2.8 standard errors"
        assert ruler._tied(table, left, left)
    nothing, window = Recommended(None, -1, 0.0, 0.0), next(c for c in table.configurations if c["kv_window"] == 256)
    assert not ruler._tied(table, Recommended(best, 1, 1.0, 0.0, 9.0), nothing) and ruler._tied(table, nothing, nothing)
    assert not ruler._tied(table, Recommended(best, 1, 1.0, 0.0, 9.0), Recommended(window, 1, 1.0, 0.0, 9.0))


def test_finals_correct_what_luck_claimed(tmp_path: Path) -> None:
    """Noise of a whole rung: the luckiest of twelve claims what it cannot hold, unless it is measured again."""
    noisy = load_table(write_table(tmp_path, knobs=FEW, noise=0.4))
    races = [race(noisy, Fixed(ranked(noisy)[:12]), seed, 12) for seed in range(10)]
    lucky = sum(true_feasible(noisy, without_finals(one, 12)) for one in races)
    confirmed = sum(true_feasible(noisy, with_finals(one, 12)) for one in races)
    assert lucky <= 6 and confirmed >= 9, (lucky, confirmed)


def test_the_model_finds_what_random_does_not(table: Table) -> None:
    """25 trials on 216 configurations of which a third is feasible: true goodput, three seeds each."""
    found: dict[str, list[float]] = {}
    for name in ("random", "ours"):
        make = contenders(5)[name]
        found[name] = [race(table, make(table, seed), seed, 25).steps[-1].regret for seed in range(3)]
    assert max(found["ours"]) <= 0.05 and sum(found["ours"]) < sum(found["random"]), found


def test_every_fifth_trial_is_the_control_arm_and_says_so(table: Table) -> None:
    strategy = Ours(table, seed=0, startup_trials=3)
    race(table, strategy, seed=0, trials=14)
    arms = [trial.user_attrs.get(search.ARM) for trial in strategy._study.trials]
    assert arms[0] is None and [arms[at] for at in range(4, 15, RANDOM_EVERY)] == ["random"] * 3
    assert arms[1:3] == ["start"] * 2 and set(arms[5:9]) == {"model"}
    assert any(search.HOPE in trial.user_attrs for trial in strategy._study.trials)


def test_a_resumed_study_climbs_on_as_an_uninterrupted_one(table: Table) -> None:
    whole = Ours(table, seed=3, startup_trials=3)
    asked = [outcome.knobs for outcome in race(table, whole, seed=3, trials=12).outcomes]
    resumed = optuna.create_study(directions=search.directions(), sampler=search.open_sampler())
    resumed.add_trials(whole._study.trials[:9])
    space = load_space({"parameters": {n: {"type": "choice", "choices": list(v)} for n, v in table.choices.items()}})
    assert dict(search.ask(resumed, space, table.baseline, 3, 3).knobs) == dict(asked[9])


def test_the_command_merges_the_results_of_strategies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path, mix="small", knobs={**FEW, "prefill_chunk_size": (None,), "max_num_seqs": (8, 16)})
    for name in ("random", "grid order"):
        given = [str(path), "--strategy", name, "--seeds", "2", "--trials", "25", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["search", *given])
        ruler.main()
    assert list(json.loads((tmp_path / "search-small.json").read_text())["results"]) == ["random", "grid order"]
    written = (tmp_path / "search-small.md").read_text()
    assert "| random (2 x 250) | " in written and "| grid order (2 x 25) | " in written, "fewer seeds than usual"
    assert written in capsys.readouterr().out
