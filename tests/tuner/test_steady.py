"""Warm-up, trend and balance of replays whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.fakes import cases
from tests.tuner.builders import answered, failed
from tuner.scoring.metrics import traffic_metrics
from tuner.scoring.slo import SLO
from tuner.scoring.steady import mser5, steady_state
from tuner.traffic.trace import RequestRecord


def noise(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(1.0, 0.05, count)


def replay(ttfts: Any, rate: float = 20.0) -> list[RequestRecord]:
    return [answered(float(ttft), (), i / rate, str(i)) for i, ttft in enumerate(ttfts)]


def queue(load: float, count: int = 600) -> list[RequestRecord]:
    """M/M/1 from empty: Lindley's recursion."""
    rng = np.random.default_rng(5)
    arrival = left = 0.0
    records = []
    for i, (gap, service) in enumerate(
        zip(rng.exponential(0.1, count), rng.exponential(0.1 * load, count), strict=True)
    ):
        arrival, left = arrival + gap, max(left - gap, 0.0) + service
        records.append(answered(left, (), arrival, str(i)))
    return records


CUTS: list[Any] = [
    ("steady from the start", noise(300), 0, 30),
    ("a warm-up of forty", np.concatenate([noise(40) + np.linspace(2, 0.3, 40), noise(260)]), 30, 60),
    ("too few to tell", np.concatenate([noise(10) + 5, noise(20)]), 0, 0),
]


@pytest.mark.parametrize(("values", "least", "most"), cases(CUTS))
def test_where_the_warm_up_ends(values: Any, least: int, most: int) -> None:
    cut = mser5(values)
    assert cut is not None and least <= cut <= most


def test_mser5_is_the_formula() -> None:
    """Against the definition, written as a loop."""
    values = np.concatenate([noise(35) + 1.5, noise(165, seed=1)])
    means = [values[i : i + 5].mean() for i in range(0, 200, 5)]
    found = [sum((y - np.mean(means[d:])) ** 2 for y in means[d:]) / (len(means) - d) ** 2 for d in range(20)]
    assert mser5(values) == 5 * int(np.argmin(found)) == 35


def test_no_steady_state_in_the_first_half() -> None:
    assert mser5(np.concatenate([noise(200) + np.linspace(3, 0, 200), noise(20)])) is None


def test_the_warm_up_leaves_the_percentiles_alone_and_no_denominator() -> None:
    slow = np.concatenate([np.full(40, 3.0), noise(260)])
    found = traffic_metrics(replay(slow), {"chat": SLO(ttft=2.0, attainment=0.8)}, 15.0)
    chat = found.classes["chat"]
    # The slow ones are forty and gone at 5 s; until then more are in flight than ever after.
    assert 2.0 <= found.steady.start <= 6.0 and found.steady.cut == round(20 * found.steady.start)
    assert chat.percentiles["ttft"][99] < 1.3
    assert (chat.offered, chat.good) == (300, 260)


TRENDS: list[Any] = [
    ("steady", replay(noise(300)), True),
    ("ever slower", replay(noise(300) + np.linspace(0, 2, 300)), False),
    ("a queue below capacity", queue(0.5), True),
    ("a queue beyond capacity", queue(1.3), False),
    ("nothing answered", [failed(name=str(i)) for i in range(60)], True),
]


@pytest.mark.parametrize(("records", "stationary"), cases(TRENDS))
def test_what_holds_still(records: list[RequestRecord], stationary: bool) -> None:
    assert steady_state(records).stationary is stationary


def test_littles_law_holds_where_nothing_is_carried_over_and_fails_under_overload() -> None:
    held, missed = steady_state(queue(0.5)), steady_state(queue(1.3))
    assert held.in_flight is not None and held.balance is not None
    # M/M/1: L = load / (1 - load).
    assert held.in_flight == pytest.approx(1.0, rel=0.35) and held.balance == pytest.approx(held.in_flight, rel=0.03)
    assert missed.in_flight is not None and missed.balance is not None
    assert missed.balance > 1.15 * missed.in_flight
    assert math.isfinite(missed.balance)
