"""Speculation may change no greedy answer: equality, ties, break-even; a finalist that differs is out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import cases, make_spec
from tests.tuner.test_study import run
from tuner.errors import SpeculationLossy
from tuner.results import load_results
from tuner.scoring.probes import Probe
from tuner.scoring.speculation import DomainSpeculation, Greedy, break_even, same
from tuner.serving.config import ServingConfig
from tuner.serving.testbed import EngineSettings, LiveTestbed
from tuner.store import Store

PLAIN = Greedy((1, 2, 3), (2.0, 0.005, 2.0))


@pytest.mark.parametrize(
    "tokens, expected",
    cases(
        [
            ("equal", (1, 2, 3), True),
            ("parts where rounding may decide", (1, 9, 9), None),
            ("parts where the model is sure", (9, 2, 3), False),
            ("ends early", (1, 2), False),
        ]
    ),
)
def test_answers_are_equal_tied_or_different(tokens: tuple[int, ...], expected: bool | None) -> None:
    assert same(Greedy(tokens, (2.0,) * len(tokens)), PLAIN) is expected


@pytest.mark.parametrize(
    "depth, cost, expected",
    cases(
        [
            ("draft of 0.1, verification 0.1, one guess", 1, 1.2, 0.20),
            ("the same, three guesses", 3, 1.4, 0.29),
            ("the same, eight guesses", 8, 1.9, 0.47),
            ("a step that costs no more", 2, 1.0, 0.0),
            ("a step that costs more than all its tokens", 2, 3.0, None),
        ]
    ),
)
def test_break_even_is_that_of_the_published_table(depth: int, cost: float, expected: float | None) -> None:
    """methods.md B5: c = 0.1, v = 0.1: .20, .29, .47 for k = 1, 3, 8, with cost 1 + k c + v."""
    found = break_even(depth, cost)
    assert found == (None if expected is None else pytest.approx(expected, abs=0.01))


def test_probes_without_short_texts_check_nothing_and_start_no_engine(tmp_path: Path) -> None:
    """A study whose probes are recorded chats or token ids alone has nothing to compare."""
    probes = [Probe(f"p{i}", "production", "forced", (1, 2, 3), ()) for i in range(5)]
    config = ServingConfig("bundled", {"model": "nowhere"}, {"num_speculative_tokens": 2})
    with LiveTestbed(EngineSettings(tmp_path), {}) as testbed:
        assert testbed.speculation(config, probes) == ()


@given(st.integers(1, 8), st.floats(1.01, 2.0))
def test_at_break_even_a_step_yields_what_it_costs(depth: int, cost: float) -> None:
    found = break_even(depth, min(cost, depth + 0.9))
    assert found is not None
    assert sum(found**i for i in range(depth + 1)) == pytest.approx(min(cost, depth + 0.9))


def test_only_ties_may_differ() -> None:
    found = DomainSpeculation("chat", 3, 2, 1, 2, 40, 30, 0.002, 0.001)
    assert (found.lossless, found.acceptance, found.break_even) == (True, 0.75, pytest.approx(0.618, abs=1e-3))
    assert not DomainSpeculation("chat", 3, 2, 0, 2, 0, 0, 0.002, 0.001).lossless


def test_a_finalist_whose_speculation_changes_answers_is_out(tmp_path: Path) -> None:
    space = {"parameters": {"max_num_seqs": {"type": "int", "low": 1, "high": 16}}}
    settings = {"num_speculative_tokens": 2, "speculative_method": "ngram"}

    def lossy(config: object, purpose: str) -> Exception | None:
        return SpeculationLossy("greedy answers differ with speculation in text") if purpose == "speculation" else None

    for fault, failures in ((lambda config, purpose: None, set()), (lossy, {"speculation_lossy"})):
        with Store(tmp_path / f"{len(failures)}.db") as store:
            spec = make_spec(
                tmp_path, search_space=space, engine={"settings": {"kv_cache_memory_bytes": 10**6, **settings}},
                budget={"trials": 3, "startup_trials": 2, "finalists": 1, "examine": False},
            )  # fmt: skip
            testbed = run(spec, store, fault)
            assert "speculation" in [call.purpose for call in testbed.calls]
            assert {failure.reason for failure in load_results(store, "fake").validation_failures} == failures
            checked = [m.measurement.speculation for m in store.measurements("fake") if m.measurement.speculation]
            assert bool(checked) == (not failures)
