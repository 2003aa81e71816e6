"""Good or bad, and by how much: a violation says exactly whether enough of the offered requests are good."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import cases
from tests.tuner.builders import answered, failed, requests
from tuner.scoring.slo import BADNESS_CAP, SLO, badness, cause, is_good, latencies, required_good, violation
from tuner.traffic.trace import RequestRecord

BOUNDS = ("ttft", "tpot", "itl", "e2e")
TAIL = SLO(itl=1.0, itl_quantile=0.9)
FLUID = SLO(ttft=1.0, tpot=0.125, fluidity=0.9)
slos = st.builds(
    SLO,
    *[st.one_of(st.none(), st.floats(1e-6, 100.0)) for _ in BOUNDS],
    attainment=st.integers(1, 99).map(lambda percent: percent / 100),
)


@pytest.mark.parametrize(
    "record, slo, good",
    cases(
        [
            ("first token exactly on its bound", answered(0.5), SLO(ttft=0.5), True),
            ("first token late", answered(0.51), SLO(ttft=0.5), False),
            ("one-token answer has no TPOT to miss", answered(0.1), SLO(tpot=1e-6), True),
            ("one gap too long", answered(0.25, [0.125, 0.125, 0.5]), SLO(tpot=0.25, itl=0.375), False),
            ("gaps on their bounds", answered(0.25, [0.125, 0.125, 0.375]), SLO(tpot=0.25, itl=0.375), True),
            ("last token late", answered(0.1, [0.5, 0.5]), SLO(ttft=0.5, e2e=1.0), False),
            ("stopped one token early", answered(0.1, [0.1], expected_tokens=3), SLO(ttft=9.0), False),
            ("any length will do", answered(0.1, [0.1], expected_tokens=None), SLO(ttft=9.0), True),
            ("refused", failed("refused"), SLO(ttft=9.0), False),
            ("tokens came, then an error", answered(0.1, error="truncated"), SLO(ttft=9.0), False),
            ("tokens came, no end", answered(0.1, finish_reason=None), SLO(ttft=9.0), False),
            ("ended without a token", failed(None, finish_reason="stop"), SLO(ttft=9.0), False),
            (
                "a long prompt has longer",
                answered(0.9, prompt_tokens=2000),
                SLO(0.5, ttft_per_1k_prompt_tokens=0.2),
                True,
            ),
            ("a short one has not", answered(0.9, prompt_tokens=1000), SLO(0.5, ttft_per_1k_prompt_tokens=0.2), False),
            ("by its length alone", answered(0.5, prompt_tokens=2000), SLO(ttft_per_1k_prompt_tokens=0.25), True),
            ("of unknown length", answered(0.6, prompt_tokens=None), SLO(0.5, ttft_per_1k_prompt_tokens=9.0), False),
            ("one gap of ten too long, the tail asks for nine", answered(0.1, [0.1] * 9 + [5.0]), TAIL, True),
            ("two gaps of ten too long", answered(0.1, [0.1] * 8 + [5.0] * 2), TAIL, False),
            ("a stall that the lead of early tokens pays for", answered(0.1, [0.0, 0.0, 0.375]), FLUID, True),
            ("the same stall without a lead", answered(1.0, [0.125, 0.125, 0.375]), FLUID, False),
            ("late and fluid, but slow on average", answered(1.0, [0.5, 0.0, 0.0, 0.0]), FLUID, False),
            ("counts from the schedule, not from sending", answered(0.6, sent=0.5), SLO(ttft=0.5), False),
        ]
    ),
)
def test_good_requests(record: RequestRecord, slo: SLO, good: bool) -> None:
    assert is_good(record, slo) is good


def test_latencies_of_a_request_that_was_scheduled_late() -> None:
    found = latencies(answered(0.25, [0.5, 0.0, 1.0], scheduled=100.0))
    assert found == pytest.approx({"ttft": 0.25, "e2e": 1.75, "tpot": 0.5, "itl": 1.0})
    assert latencies(answered(0.25)).keys() == {"ttft", "e2e"}


def test_badness_is_the_log_of_the_worst_ratio() -> None:
    assert badness(answered(0.2, [0.3]), SLO(ttft=0.1, e2e=1.0)) == pytest.approx(math.log(2))
    assert badness(answered(0.01), SLO(ttft=0.02)) == pytest.approx(-math.log(2))
    assert badness(failed(), SLO(ttft=1.0)) == BADNESS_CAP
    assert badness(answered(1e-6), SLO(ttft=100.0)) == -BADNESS_CAP
    assert badness(answered(100.0), SLO(ttft=1e-6)) == BADNESS_CAP


@pytest.mark.parametrize("percent", [7, 29, 57, 58, 90, 95, 99])
@pytest.mark.parametrize("offered", [1, 20, 100, 300])
def test_required_good_is_exact_where_binary_fractions_are_not(percent: int, offered: int) -> None:
    assert required_good(percent / 100, offered) == math.ceil(Fraction(percent, 100) * offered)


@pytest.mark.parametrize(
    "record, expected",
    cases(
        [
            ("good", answered(0.1, [0.1]), None),
            ("refused", failed("refused"), "refused"),
            ("cut short", answered(0.1, expected_tokens=4), "wrong_length"),
            ("first token late", answered(0.9, [0.1]), "ttft"),
            ("both late, the pace by more", answered(0.6, [0.9]), "tpot"),
        ]
    ),
)
def test_the_cause_of_a_bad_request_is_the_bound_it_misses_most(record: RequestRecord, expected: str | None) -> None:
    assert cause(record, SLO(ttft=0.5, tpot=0.3)) == expected


def _share_of_good(records: list[RequestRecord], slo: SLO) -> Fraction:
    """The definition, written out: every bound that is set and defined is met by an answer of the right length."""

    def good(record: RequestRecord) -> bool:
        if record.error is not None:
            return False
        found = latencies(record)
        return all(found.get(name, 0.0) <= bound for name, bound in slo.bounds.items())

    return Fraction(sum(good(record) for record in records), len(records))


@given(st.lists(requests(), min_size=1, max_size=30), slos)
def test_violation_is_not_positive_exactly_when_enough_of_the_offered_are_good(
    records: list[RequestRecord], slo: SLO
) -> None:
    enough = _share_of_good(records, slo) >= Fraction(round(slo.attainment * 100), 100)
    assert (violation(records, slo) <= 0.0) == enough


@given(st.lists(requests(), max_size=20), slos, st.sampled_from(BOUNDS), st.floats(1.0, 10.0))
def test_relaxing_a_bound_never_raises_the_violation(
    records: list[RequestRecord], slo: SLO, name: str, factor: float
) -> None:
    bound = getattr(slo, name)
    for relaxed in (None, None if bound is None else bound * factor):
        laxer = dataclasses.replace(slo, **{name: relaxed})  # type: ignore[arg-type]
        assert violation(records, laxer) <= violation(records, slo)


@given(st.lists(requests(), max_size=20).flatmap(lambda r: st.tuples(st.just(r), st.permutations(r))), slos)
def test_order_changes_nothing(orders: tuple[list[RequestRecord], list[RequestRecord]], slo: SLO) -> None:
    assert violation(orders[0], slo) == violation(orders[1], slo)


@given(st.lists(requests(), min_size=1, max_size=20), slos, st.data())
def test_dropping_a_request_never_lowers_the_violation(
    records: list[RequestRecord], slo: SLO, data: st.DataObject
) -> None:
    dropped = data.draw(st.integers(0, len(records) - 1))
    fewer = [failed("refused") if i == dropped else record for i, record in enumerate(records)]
    assert violation(fewer, slo) >= violation(records, slo)


def test_nothing_offered_is_nothing_missed() -> None:
    assert violation([], SLO(ttft=1.0)) == 0.0
