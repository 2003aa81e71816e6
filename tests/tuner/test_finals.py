"""Finals: repeats go where the doubt is, and no more is claimed than a further replay would hold."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from tests.fakes import cases
from tuner.finals import (
    FIRST_REPLAYS,
    Candidate,
    Estimate,
    allocation,
    choose,
    claim,
    claimed,
    decided,
    estimates,
    next_replay,
)

LADDER = [round(1.15**step, 4) for step in range(12)]
SLOPE = 3.0


def replayed(number: int, *readings: tuple[float, float], out: bool = False) -> Candidate:
    return Candidate(number, math.log(LADDER[6]), readings, out)


def test_allocation_is_the_formula_of_ocba() -> None:
    """Two rivals at gaps of 1 and 2, unit noise: N1 / N2 = 4, N_best = sqrt(N1² + N2²)."""
    best, near, far = allocation([Estimate(2.0, 1.0, 5), Estimate(1.0, 1.0, 5), Estimate(0.0, 1.0, 5)], 100)
    assert near / far == pytest.approx(4.0)
    assert best == pytest.approx(math.hypot(near, far))
    assert best + near + far == pytest.approx(100)


def test_the_doubt_falls_with_repeats_and_with_the_gap() -> None:
    def pair(gap: float, count: int) -> list[Estimate]:
        return [Estimate(gap, 0.1, count), Estimate(0.0, 0.1, count)]

    assert decided(pair(0.0, 5)) == pytest.approx(0.5)
    assert decided(pair(0.1, 2)) < decided(pair(0.1, 8)) < decided(pair(0.3, 8))


def test_a_lucky_first_reading_of_the_search_is_no_evidence() -> None:
    lucky = Candidate(0, math.log(LADDER[9]), ((LADDER[6], 0.2), (LADDER[6], 0.1)))
    steady = Candidate(1, math.log(LADDER[6]), ((LADDER[6], -0.2), (LADDER[6], -0.2)))
    assert choose([lucky, steady], SLOPE) == 1


CHOICES = [
    ("nobody was replayed", [replayed(0)], None),
    ("who is out is not chosen", [replayed(0, (2.0, -0.9), out=True), replayed(1, (2.0, 0.1))], 1),
    ("more evidence beats a slightly better mean", [replayed(0, (2.0, -0.31)), replayed(1, *[(2.0, -0.3)] * 6)], 1),
]


@pytest.mark.parametrize(("candidates", "expected"), cases(CHOICES))
def test_the_choice(candidates: list[Candidate], expected: int | None) -> None:
    assert choose(candidates, SLOPE) == expected


def test_one_slow_moment_costs_a_candidate_little() -> None:
    steady = replayed(0, *[(LADDER[6], -0.1)] * 3)
    slowed = replayed(1, *[(LADDER[6], -0.2)] * 2, (LADDER[6], 2.2))
    found = estimates([steady, slowed], SLOPE)
    assert found[1].mean > found[0].mean and found[0].deviation < 0.1
    assert choose([steady, slowed], SLOPE) == 1


def test_what_is_claimed_is_below_the_mean_and_grows_with_evidence() -> None:
    at = math.log(LADDER[6]) + 0.1
    assert claim(Estimate(at, 0.01, 20), LADDER) == 6
    assert claim(Estimate(at, 0.05, 1), LADDER) < claim(Estimate(at, 0.05, 30, degrees=32), LADDER) == 6
    assert claim(Estimate(-1.0, 0.05, 3), LADDER) == -1


def test_the_bound_has_the_freedom_of_everyone_whose_repeats_tell_the_noise() -> None:
    """Five candidates of the same scatter: at the same deviation each may claim more than one by itself."""
    five = [replayed(number, *[(LADDER[6], value) for value in (-0.1, 0.0, 0.1)]) for number in range(5)]
    alone, together = estimates(five[:1], SLOPE)[0], estimates(five, SLOPE)[0]
    assert together.degrees == alone.degrees + 4 * (len(five[0].replays) - 1)
    fine = [1 + step / 1000 for step in range(2000)]
    at_same_noise = replace(together, deviation=alone.deviation)
    assert claim(at_same_noise, fine) > claim(alone, fine)


CLAIMS = [
    ("as the bound says", replayed(0, *[(LADDER[6], -0.6)] * 3), 6),
    (
        "one slow replay of three at the rung decides nothing",
        replayed(0, *[(LADDER[6], -0.8)] * 2, (LADDER[6], 0.9)),
        6,
    ),
    ("two of three do", replayed(0, *[(LADDER[9], 0.3)] * 3, (LADDER[6], -0.5), *[(LADDER[6], 0.1)] * 2), 5),
    ("at the lowest rung the median decides", replayed(0, *[(LADDER[0], -0.1)] * 2, (LADDER[0], 0.9)), 0),
    ("not even that is held", replayed(0, *[(LADDER[0], 0.1)] * 3), -1),
]


@pytest.mark.parametrize(("candidate", "rung"), cases(CLAIMS))
def test_the_rung_that_is_claimed(candidate: Candidate, rung: int) -> None:
    assert claimed(candidate, estimates([candidate], SLOPE)[0], LADDER) == rung


BELOW = [round(1.15**step, 4) for step in range(-4, 8)]
CLAIMS_FROM_BELOW = [
    ("the recorded rate, held by the median", replayed(0, *[(BELOW[4], -0.1)] * 2, (BELOW[4], 0.9)), 4),
    ("less than that: as the bound says", replayed(0, *[(BELOW[2], -0.6)] * 3), 2),
    ("not even the lowest", replayed(0, *[(BELOW[0], 0.1)] * 3), -1),
]


@pytest.mark.parametrize(("candidate", "rung"), cases(CLAIMS_FROM_BELOW))
def test_the_rung_that_is_claimed_of_a_ladder_from_below_the_recorded_rate(candidate: Candidate, rung: int) -> None:
    assert claimed(candidate, estimates([candidate], SLOPE)[0], BELOW) == rung


AT_THE_CLAIM = [
    ("nothing yet", [], 8),
    ("it holds", [-0.4], None),
    ("one miss may be a slow moment", [0.5], 8),
    ("so may one of two", [0.5, -0.4], 8),
    ("two of three hold", [0.5, -0.4, -0.4], None),
    ("two misses are none", [0.5, 0.5], 7),
]


@pytest.mark.parametrize(("violations", "rung"), cases(AT_THE_CLAIM))
def test_the_winner_is_replayed_where_it_claims(violations: list[float], rung: int | None) -> None:
    fast = replayed(0, *[(LADDER[9], -0.05)] * 6, *[(LADDER[8], value) for value in violations])
    turn = next_replay([fast, replayed(1, *[(LADDER[1], 0.0)] * 3)], LADDER, SLOPE, 20)
    assert turn == (None if rung is None else (0, rung))


def test_each_comes_at_least_so_often_and_the_doubtful_pair_gets_the_rest() -> None:
    """Capacities at rungs 8.4, 8.2 and 4.5: the third is out of the race after its first replays."""
    true, draw = [math.log(1.15) * rung for rung in (8.4, 8.2, 4.5)], random.Random(0)
    candidates = [Candidate(number, value + draw.gauss(0, 0.05)) for number, value in enumerate(true)]
    while (turn := next_replay(candidates, LADDER, SLOPE, 20)) is not None:
        index, rung = turn
        violation = SLOPE * (math.log(LADDER[rung]) - true[index]) + draw.gauss(0, 0.15)
        one = candidates[index]
        candidates[index] = Candidate(one.number, one.expected, (*one.replays, (LADDER[rung], violation)))
    counts = [len(one.replays) for one in candidates]
    assert counts[2] == FIRST_REPLAYS < min(counts[:2]) and sum(counts) <= 20
    chosen = choose(candidates, SLOPE)
    assert chosen in (0, 1)
    assert claim(estimates(candidates, SLOPE)[chosen], LADDER) in (6, 7, 8)


def test_what_is_confirmed_is_what_is_claimed_in_the_end() -> None:
    """The scatter of one that is out widens the margin of the claim in the race, as it does in tuner.worth."""
    steady = replayed(0, *[(LADDER[9], 0.12)] * 3, (LADDER[7], -0.72))
    lost = replayed(1, *[(LADDER[2], value) for value in (-0.6, -0.3, 0.0, 0.3, 0.6)], out=True)
    assert next_replay([steady], LADDER, SLOPE, 20) == (0, 8)
    assert claim(estimates([steady, lost], SLOPE)[0], LADDER) == 7
    assert next_replay([steady, lost], LADDER, SLOPE, 20) is None, "7 is held already"


def test_a_clear_winner_is_replayed_where_it_claims_and_no_further() -> None:
    far = [replayed(0, *[(LADDER[8], -0.05)] * 3), replayed(1, *[(LADDER[3], 0.0)] * 3)]
    turn = next_replay(far, LADDER, SLOPE, 20)
    assert turn is not None and turn[0] == 0 and turn[1] < 8
    done = replayed(0, *far[0].replays, (LADDER[turn[1]], -0.4))
    assert next_replay([done, far[1]], LADDER, SLOPE, 20) is None
    assert next_replay([replayed(0), replayed(1)], LADDER, SLOPE, 0) is None, "the replays are spent"
