"""Goodput, attainment and percentiles of a replay."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from tests.fakes import cases
from tests.tuner.builders import answered, failed, requests
from tuner.scoring.cost import Cost
from tuner.scoring.intervals import effective_size, proportion_interval, proportion_lower
from tuner.scoring.metrics import Interval, percentiles, tail_latency, traffic_metrics
from tuner.scoring.slo import SLO
from tuner.traffic.trace import RequestRecord

SLOS = {"chat": SLO(ttft=1.0, attainment=0.9), "docs": SLO(e2e=5.0, attainment=0.5)}


def test_a_replay_by_hand() -> None:
    records = [
        answered(0.5, [0.1, 0.3], name="good"),
        answered(1.5, [0.1], name="late"),
        answered(0.2, expected_tokens=2, name="short"),
        failed("http_5xx", name="error"),
        failed(None, name="unfinished"),
        answered(4.0, [0.5, 0.5], name="doc", slo_class="docs", tenant="u", sent=0.25),
        failed("not_sent", name="unsent", slo_class="docs", tenant="u", sent=None),
    ]
    metrics = traffic_metrics(records, SLOS, duration=10.0)
    chat, docs = metrics.classes["chat"], metrics.classes["docs"]

    assert (metrics.offered_rate, metrics.goodput.value) == (0.7, 0.2)
    assert metrics.output_tokens_per_second == pytest.approx(0.9)
    assert (chat.offered, chat.finished, chat.good, chat.target) == (5, 3, 1, 0.9)
    assert chat.errors == {"http_5xx": 1, "unfinished": 1, "wrong_length": 1}
    assert (docs.offered, docs.good, docs.errors) == (2, 1, {"not_sent": 1})
    assert chat.violation > 0 and docs.violation <= 0
    assert chat.percentiles["ttft"][50] == 0.5
    assert chat.percentiles["tpot"] == pytest.approx({50: 0.2, 90: 0.2, 95: 0.2, 99: 0.2})
    assert chat.percentiles["itl"][50] == pytest.approx(0.1)
    assert chat.percentiles["itl"][99] == pytest.approx(0.3)
    assert docs.percentiles["e2e"][99] == 5.0
    assert metrics.send_lag == {50: 0.0, 95: 0.25, 99: 0.25}
    assert (metrics.tenants["u"].offered, metrics.tenants["t"].good) == (2, 1)


def test_nothing_finished_leaves_the_percentiles_empty_and_everything_bad() -> None:
    metrics = traffic_metrics([failed("refused", sent=None)], {"chat": SLO(ttft=1.0)}, duration=2.0)
    assert (metrics.goodput.value, metrics.goodput.low, metrics.send_lag) == (0.0, 0.0, {})
    assert metrics.classes["chat"].percentiles == {}
    assert metrics.classes["chat"].violation == 3.0


def test_a_class_without_requests_is_there_and_proves_nothing() -> None:
    docs = traffic_metrics([answered()], SLOS, duration=1.0).classes["docs"]
    assert (docs.offered, docs.violation, docs.attainment.low, docs.attainment.high) == (0, 0.0, 0.0, 1.0)


def test_a_tenant_of_two_classes_is_held_to_the_stricter() -> None:
    records = [answered(name="a"), answered(name="b", slo_class="docs")]
    assert traffic_metrics(records, SLOS, duration=1.0).tenants["t"].target == 0.9


def test_a_request_of_a_class_without_an_slo_is_refused() -> None:
    with pytest.raises(ValueError, match="request r7: SLO class 'chta' is not among slos: chat, docs"):
        traffic_metrics([answered(name="r7", slo_class="chta")], SLOS, duration=1.0)


@given(st.lists(requests(), min_size=1, max_size=30))
def test_goodput_counts_the_good_whatever_their_order(records: list[RequestRecord]) -> None:
    metrics = traffic_metrics(records, SLOS, duration=4.0)
    assert metrics.goodput.value * 4.0 == pytest.approx(metrics.classes["chat"].good)
    assert 0.0 <= metrics.goodput.low <= metrics.goodput.value <= metrics.goodput.high <= metrics.offered_rate
    assert traffic_metrics(records[::-1], SLOS, duration=4.0) == metrics


@given(st.integers(0, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_proportion_bounds_are_those_of_scipy(counts: tuple[int, int]) -> None:
    successes, trials = counts
    if trials == 0:
        assert proportion_interval(0, 0) == (0.0, 1.0) and proportion_lower(0, 0) == 0.0
        return
    exact = binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert proportion_interval(successes, trials) == pytest.approx((exact.low, exact.high), abs=1e-9)
    one_sided = binomtest(successes, trials, alternative="greater").proportion_ci(0.95, method="exact")
    assert proportion_lower(successes, trials) == pytest.approx(one_sided.low, abs=1e-9)


def _gaussian_chain(rng: np.random.Generator, n: int, rho: float) -> np.ndarray:
    noise = rng.standard_normal(n)
    values = np.empty(n)
    values[0] = noise[0]
    for i in range(1, n):
        values[i] = rho * values[i - 1] + math.sqrt(1 - rho * rho) * noise[i]
    return values


def _covered(rho: float) -> tuple[float, float]:
    """Of 200 replays of 200 requests whose log-latencies are such a chain, how often the 95 % interval of attainment
    holds the true 0.9: as reported, and as it would be for independent requests."""
    rng, reported, independent = np.random.default_rng(7), 0, 0
    for _ in range(200):
        latencies = np.exp(_gaussian_chain(rng, 200, rho) - norm.ppf(0.9))
        records = [answered(float(x), scheduled=float(i), name=str(i)) for i, x in enumerate(latencies)]
        chat = traffic_metrics(records, {"chat": SLO(ttft=1.0, attainment=0.9)}, duration=200.0).classes["chat"]
        reported += chat.attainment.low <= 0.9 <= chat.attainment.high
        plain = binomtest(chat.good, chat.offered).proportion_ci(0.95, method="exact")
        independent += plain.low <= 0.9 <= plain.high
    return reported / 200, independent / 200


def test_attainment_is_covered_where_requests_depend_on_each_other() -> None:
    reported, independent = _covered(rho=0.8)
    assert reported > 0.85 and independent < 0.72
    assert _covered(rho=0.0)[0] > 0.93


EFFECTIVE = [
    ("nothing", [], 0.0, 0.0),
    ("two", [0, 1], 2.0, 2.0),
    ("all alike", [1] * 50, 50.0, 50.0),
    ("taking turns is no worse than independence", [0, 1] * 25, 50.0, 50.0),
    ("one half good, then one half bad", [1] * 25 + [0] * 25, 1.0, 1.5),
    ("runs of five", ([1] * 5 + [0] * 5) * 20, 30.0, 60.0),
]


@pytest.mark.parametrize(("values", "least", "most"), cases(EFFECTIVE))
def test_effective_size(values: list[int], least: float, most: float) -> None:
    assert least <= effective_size(values) <= most


def test_a_long_chain_is_worth_what_the_formula_says() -> None:
    chain = _gaussian_chain(np.random.default_rng(1), 20_000, 0.5)
    assert effective_size(chain.tolist()) == pytest.approx(20_000 / 3, rel=0.05)


def test_a_class_without_a_bad_request_may_still_be_correlated() -> None:
    """The worst come together: a queue filled up once, and nobody was late yet."""
    slow = [answered(0.9 if 40 <= i < 60 else 0.1 + i / 1e4, scheduled=float(i), name=str(i)) for i in range(200)]
    spread = [answered(0.9 if i % 10 == 0 else 0.1 + i / 1e4, scheduled=float(i), name=str(i)) for i in range(200)]
    slo = {"chat": SLO(ttft=1.0, attainment=0.9)}
    together, apart = (traffic_metrics(r, slo, duration=200.0).classes["chat"] for r in (slow, spread))
    assert together.good == apart.good == 200
    assert together.effective < 20 < 200 == apart.effective
    assert together.lower < 0.9 < apart.lower


def test_goodput_per_device_hour_and_per_unit_of_currency() -> None:
    found = Cost(price_per_hour=2.5, devices=4, currency="EUR").of(Interval(2.0, 1.0, 3.0))
    assert found == {
        "goodput per device-hour": Interval(1800.0, 900.0, 2700.0),
        "goodput per EUR": Interval(720.0, 360.0, 1080.0),
    }


@pytest.mark.parametrize(
    "values, rank, expected",
    cases(
        [
            ("a percentile is an observation", [1.0, 2.0, 10.0], 50, 2.0),
            ("between two observations, the larger", [1.0, 2.0], 50, 2.0),
            ("the last of few", [1.0, 2.0, 3.0], 95, 3.0),
        ]
    ),
)
def test_percentiles(values: list[float], rank: int, expected: float) -> None:
    assert percentiles(values, (rank,)) == {rank: expected}


@pytest.mark.parametrize(
    "records, metric, expected",
    cases(
        [
            ("all answered", [answered(0.1), answered(0.2)], "ttft", 0.2),
            ("a dropped request waited to the end", [answered(0.1), failed()], "ttft", 30.0),
            ("nothing finished", [failed(), failed()], "tpot", 30.0),
            ("no requests at all", [], "e2e", 30.0),
            ("one-token answers have no TPOT", [answered(0.1), answered(0.1, [0.4])], "tpot", 0.4),
            ("an answer cut short waited to the end", [answered(0.1, expected_tokens=9)], "ttft", 30.0),
        ]
    ),
)
def test_tail_latency(records: list[RequestRecord], metric: str, expected: float) -> None:
    assert tail_latency(records, metric, 95.0, worst=30.0) == pytest.approx(expected)


@given(st.lists(requests(), min_size=1, max_size=20), st.data())
def test_dropping_a_request_never_improves_the_tail(records: list[RequestRecord], data: st.DataObject) -> None:
    dropped = data.draw(st.integers(0, len(records) - 1))
    fewer = [failed() if i == dropped else record for i, record in enumerate(records)]
    assert tail_latency(fewer, "ttft", 90.0, 500.0) >= tail_latency(records, "ttft", 90.0, 500.0)
