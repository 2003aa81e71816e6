"""The error rate of the sequential test, by simulation: independent, correlated and queueing requests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.fakes import cases
from tuner.scoring.sequential import ERROR_RATE, MAX_CORRELATION, evidence_below

RUNS, REQUESTS, LOOKS = 200, 240, range(20, 241, 20)


def chain(rng: np.random.Generator, share: float, correlation: float) -> list[bool]:
    """A stationary two-state Markov chain with this share of True and this correlation of neighbours."""
    outcomes = [bool(rng.random() < share)]
    for _ in range(REQUESTS - 1):
        outcomes.append(outcomes[-1] if rng.random() < correlation else bool(rng.random() < share))
    return outcomes


def queue(rng: np.random.Generator, load: float, share: float) -> list[bool]:
    """Whether a request's time in an M/M/1 queue is below the bound that `share` of all meet in the long run."""
    bound = -math.log(1 - share) / (1 - load)
    time = rng.exponential(1 / (1 - load))
    outcomes = []
    for gap, service in zip(rng.exponential(1 / load, REQUESTS), rng.exponential(1.0, REQUESTS), strict=True):
        outcomes.append(bool(time <= bound))
        time = max(time - gap, 0.0) + service
    return outcomes


def rejected(runs: list[list[bool]], floor: float) -> float:
    """Share of the runs that are rejected at some look."""
    return float(np.mean([any(evidence_below(run[:look], floor) >= 1 / ERROR_RATE for look in LOOKS) for run in runs]))


ERRORS = [
    ("independent, at the floor", 0.0, 0.65, 0.65),
    ("independent, low floor", 0.0, 0.3, 0.3),
    ("correlated, at the floor", 0.5, 0.65, 0.65),
    ("as correlated as is promised", MAX_CORRELATION, 0.65, 0.65),
    ("more than is promised, but an SLO's margin above the floor", 0.95, 0.95, 0.65),
]


@pytest.mark.parametrize(("correlation", "share", "floor"), cases(ERRORS))
def test_a_share_that_is_there_is_seldom_rejected_however_often_one_looks(
    correlation: float, share: float, floor: float
) -> None:
    rng = np.random.default_rng(1)
    found = rejected([chain(rng, share, correlation) for _ in range(RUNS)], floor)
    # Three standard errors of the simulation.
    assert found <= ERROR_RATE + 3 * math.sqrt(ERROR_RATE * (1 - ERROR_RATE) / RUNS)


@pytest.mark.parametrize("load", [0.5, 0.9])
def test_a_replay_that_would_have_held_is_seldom_rejected(load: float) -> None:
    """Whole replays of a queue, whose correlation is no Markov chain's and beyond what is promised."""
    rng = np.random.default_rng(2)
    runs = [queue(rng, load, 0.95) for _ in range(RUNS)]
    held = [run for run in runs if np.mean(run) >= 0.95]
    assert len(held) > RUNS / 4
    assert rejected(held, 0.65) <= ERROR_RATE


def test_what_is_hopeless_is_found_out_early() -> None:
    rng = np.random.default_rng(3)
    assert rejected([chain(rng, 0.3, 0.5) for _ in range(RUNS)], 0.65) >= 0.9
    assert evidence_below([False] * 40, 0.65) >= 1 / ERROR_RATE
    assert evidence_below([False] * 10, 0.65) < 1 / ERROR_RATE
    assert evidence_below([], 0.65) == 1.0


def test_a_run_of_bad_luck_is_no_evidence() -> None:
    outcomes: NDArray[np.bool_] = np.ones(200, dtype=bool)
    outcomes[50:70] = False
    assert evidence_below(outcomes.tolist(), 0.65) < 1
