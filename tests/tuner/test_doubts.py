"""What makes a measurement doubtful, and what does not."""

from __future__ import annotations

import pytest
from scipy.stats import binom

from tests.fakes import cases
from tests.tuner.builders import answered, failed
from tuner.scoring.doubts import Doubt, disqualifying, doubts, requests_needed
from tuner.scoring.metrics import traffic_metrics
from tuner.scoring.slo import SLO
from tuner.traffic.trace import RequestRecord

CHAT = SLO(ttft=1.0, attainment=0.9)
ENOUGH = [answered(0.1, [0.01] * 20, name=str(i)) for i in range(40)]


def _doubts(records: list[RequestRecord], slo: SLO = CHAT, stopped: str | None = None) -> tuple[Doubt, ...]:
    slos = {"chat": slo}
    return doubts(records, traffic_metrics(records, slos, 10.0), slos, stopped)


@pytest.mark.parametrize(
    "records, slo, expected",
    cases(
        [
            ("nothing wrong", ENOUGH, CHAT, []),
            ("lag of 9 ms where 1 % of the TTFT bound is 10", [answered(sent=0.009)] * 40, CHAT, []),
            ("lag of 11 ms", [answered(sent=0.011)] * 40, CHAT, ["client_lagged"]),
            ("lag of 4 ms against a tight bound", [answered(sent=0.004)] * 40, SLO(ttft=0.1, attainment=0.9), []),
            ("lag of 6 ms, no TTFT bound", [answered(sent=0.006)] * 40, SLO(e2e=9, attainment=0.9), ["client_lagged"]),
            ("a long answer in one piece", [*ENOUGH, answered(0.1, [0.0] * 20)], CHAT, ["chunks_collapsed"]),
            ("one step of speculation in one piece", [*ENOUGH, answered(0.1, [0.0] * 16)], CHAT, []),
            ("28 requests for p90", ENOUGH[:28], CHAT, ["too_few_requests"]),
            ("29 requests for p90", ENOUGH[:29], CHAT, []),
            ("a failed request", [*ENOUGH, failed("http_5xx")], CHAT, ["requests_failed"]),
            ("an answer of the wrong length", [*ENOUGH, answered(expected_tokens=4)], CHAT, ["requests_failed"]),
        ]
    ),
)
def test_doubts(records: list[RequestRecord], slo: SLO, expected: list[str]) -> None:
    assert [doubt.name for doubt in _doubts(records, slo)] == expected


def test_an_early_stop_is_doubted_in_the_words_of_who_stopped_it() -> None:
    (doubt,) = _doubts(ENOUGH, stopped="in-flight requests grew for 5 s")
    assert (doubt.name, doubt.detail) == ("stopped_early", "in-flight requests grew for 5 s")


def test_only_a_lag_of_the_client_disqualifies() -> None:
    lagged, poor = [answered(sent=0.21)] * 40, [*ENOUGH[:20], failed("http_5xx")]
    assert [doubt.severity for doubt in _doubts(poor, stopped="hopeless")] == ["note"] * 3
    assert disqualifying(_doubts(poor)) is None
    doubt = disqualifying(_doubts(lagged))
    assert doubt is not None and doubt.name == "client_lagged"
    (noted,) = _doubts([answered(sent=0.19)] * 40)
    assert (noted.name, noted.severity) == ("client_lagged", "note"), "a fifth of the bound of 1 s is not reached"


def test_the_same_doubt_reads_the_same_for_different_figures() -> None:
    (first,), (second,) = (_doubts([answered(sent=lag)] * 40) for lag in (0.02, 0.03))
    assert first.detail != second.detail and str(first) == str(second)


@pytest.mark.parametrize("attainment", [0.5, 0.9, 0.95, 0.99])
def test_requests_needed_is_the_fewest_that_prove_the_attainment(attainment: float) -> None:
    needed = requests_needed(attainment)
    assert binom.pmf(0, needed, 1 - attainment) <= 0.05 < binom.pmf(0, needed - 1, 1 - attainment)
