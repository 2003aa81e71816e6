"""When to tune again: profiles of traffic, their drift, and the thresholds that a study keeps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from tests.fakes import FakeTestbed, cases, make_spec, make_trace
from tests.tuner.test_study import Log
from tuner.recommend import proven, recommend
from tuner.results import load_results
from tuner.retune import RetuneWhen, conditions, drifts, retune_when
from tuner.store import Store
from tuner.study import run_study
from tuner.traffic.inspection import inspect_trace
from tuner.traffic.profile import SERIES, drift_limit, length_drift, profile_from, profile_of, stability_index
from tuner.traffic.trace import Request, Trace
from tuner.traffic.trace_file import load_trace, save_trace

ROOT = Path(__file__).parents[2]
COUNTS = st.lists(st.integers(0, 500), min_size=2, max_size=12)


def _trace(lengths: list[int], rate: float = 10.0, outputs: int = 20, shared: float = 0.0) -> Trace:
    """Requests of these prompt lengths; the first share of each prompt's tokens is the same in all."""
    requests = tuple(
        Request(f"r{i}", i / rate, "t", "chat", tuple([7] * int(n * shared) + list(range(i, i + n - int(n * shared)))),
                outputs, output_tokens=outputs)
        for i, n in enumerate(lengths)
    )  # fmt: skip
    return Trace(requests, {}, seconds=len(lengths) / rate)


def _lengths(scale: float = 1.0, count: int = 400) -> list[int]:
    return [int(x * scale) + 1 for x in np.random.default_rng(2).lognormal(5, 0.6, count)]


def test_no_threshold_is_one_that_nothing_can_cross() -> None:
    said = [" ".join(conditions(RetuneWhen(1, 10.0, None, share, None))) for share in (0.6, 0.05)]
    assert "fewer than 50% of guessed tokens" in said[0] and "guessed" not in said[1]


@given(COUNTS, st.data())
def test_the_index_is_both_divergences_added(before: list[int], data: st.DataObject) -> None:
    after = data.draw(st.lists(st.integers(0, 500), min_size=len(before), max_size=len(before)))
    p, q = np.array(before) + 0.5, np.array(after) + 0.5
    found = stability_index(before, after)
    assert found == pytest.approx(entropy(p, q) + entropy(q, p), abs=1e-12)
    assert found >= 0 and stability_index(before, before) == 0


def test_traffic_of_the_same_kind_is_seldom_said_to_have_drifted() -> None:
    rng, said = np.random.default_rng(4), 0
    for _ in range(200):
        old, new = (_trace([int(x) + 1 for x in rng.lognormal(5, 0.6, n)]) for n in (300, 60))
        value, limit = length_drift(profile_of(old).prompt, [len(r.prompt) for r in new.requests])
        said += value > limit
    assert said / 200 <= 0.07
    assert drift_limit([100] * 10, 1000) == 0.2 and drift_limit([6] * 10, 60) > 0.5


def test_a_profile_says_what_is_in_a_trace() -> None:
    found = profile_of(_trace(_lengths(), shared=0.4))
    assert (found.requests, found.rate) == (400, pytest.approx(10.0))
    assert sum(found.prompt.deciles) == sum(found.prompt.series) == 400
    assert len(found.prompt.edges) == 9 and all(30 <= count <= 50 for count in found.prompt.deciles)
    assert len(found.prompt.series) == len(SERIES) + 1
    assert found.output is not None and found.output.edges == (), "all answers are of one length"
    assert found.shared == pytest.approx(0.36, abs=0.05), "full blocks alone count"
    assert profile_from(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_it_agrees_with_what_inspect_says_of_the_demos_trace() -> None:
    path = ROOT / "examples/demo/trace.jsonl"
    found, inspected = profile_of(load_trace(path)), inspect_trace(path)
    assert inspected.sharing is not None
    assert found.shared == pytest.approx(inspected.sharing.token_share, abs=1e-6)
    assert found.rate == inspected.arrivals.rate


TUNED = RetuneWhen(3, 20.0, profile_of(_trace(_lengths(), shared=0.4)), 0.7, 0.4)
DRIFTED = [
    ("the same traffic", {}, 0.65, set()),
    ("more of it than was held", {"rate": 21.0}, None, {"arrival rate (requests/s)"}),
    ("longer prompts", {"lengths": _lengths(2.0)}, None, {"prompt lengths (PSI)"}),
    ("another share in common", {"shared": 0.1}, None, {"shared prompt tokens"}),
    ("guesses that fail", {}, 0.59, {"accepted guesses"}),
    ("fewer requests", {"rate": 1.0}, None, set()),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "acceptance", "expected"), cases(DRIFTED))
def test_what_has_drifted_is_named(changes: dict[str, Any], acceptance: float | None, expected: set[str]) -> None:
    trace = _trace(**{"lengths": _lengths(), "shared": 0.4, **changes})
    found = drifts(TUNED, trace, acceptance)
    assert {drift.what for drift in found if drift.exceeded} == expected
    assert ("accepted guesses" in {drift.what for drift in found}) == (acceptance is not None)


def test_conditions_name_every_threshold() -> None:
    words = " | ".join(conditions(TUNED))
    assert "above 20 requests/s" in words and "PSI above 0.2" in words and "fewer than 60% of guessed tokens" in words
    assert len(conditions(RetuneWhen(3, 20.0, None, None, None))) == 1, "an old study kept no profile"


def test_a_study_keeps_what_its_thresholds_need(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, budget={"trials": 10, "startup_trials": 4, "finalists": 1})
    with Store(tmp_path / "study.db") as store:
        run_study(spec, store, FakeTestbed(), Log(), {}, False)
        results = load_results(store, "fake")
    found = recommend(results)
    when = retune_when(results, found)
    assert found.trial is not None and when is not None
    assert when.profile == profile_of(make_trace().window(0, 4)) and when.acceptance is None
    assert when.held_rate == pytest.approx(10 * proven(results, found.trial).time_scale), "ten requests/s, sped up"
    longer = tmp_path / "longer.jsonl"
    save_trace(_trace(_lengths(), rate=1.0), longer)
    assert [d.what for d in drifts(when, load_trace(longer)) if d.exceeded] == [
        "prompt lengths (PSI)", "output lengths (PSI)",
    ] or when.profile.prompt.edges == ()  # fmt: skip
