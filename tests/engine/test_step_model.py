"""Step times: what is counted, what a fit finds again, what a log holds, what a profile makes of it."""

from __future__ import annotations

import functools
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import running

from engine.config import EngineConfig
from engine.framing import pack
from engine.profile import acceptance, profile_of
from engine.scheduler import ScheduledSequence
from engine.sequence import SamplingParams, Sequence
from engine.speculative.catching_up import DraftSpan, draft_spans
from engine.step_log import Setting, TimedStep, read_step_log
from engine.step_model import StepCounter, StepModel, fit

SETTING = Setting("m/auto/auto", "float32")


def item(start: int, num_tokens: int, pages: int, num_drafts: int = 0, drafted: int = 0) -> ScheduledSequence:
    sequence = Sequence("r", tuple(range(200)), SamplingParams(), 0)
    sequence.block_table = list(range(pages))
    sequence.num_draft_computed = drafted
    return ScheduledSequence(sequence, start, num_tokens, num_drafts, True)


def test_counts_of_a_step_by_hand() -> None:
    counter = StepCounter(EngineConfig(model="none"), None)
    step = [item(100, 1, 7), item(120, 1, 8), item(0, 40, 3)]
    # 18 pages of 16 tokens; pairs: 7 + 8 + 40 x 3 pages. Tables of 7 and 8 pages are not within a factor of two.
    assert counter.target(step, None) == (1, 42, 3, 3, 18 * 16, 135 * 16)
    # With two guesses verified the first has three rows.
    assert counter.target(step, [2, 0, 0]) == (1, 44, 3, 3, 18 * 16, (3 * 7 + 8 + 120) * 16)


def test_a_window_bounds_what_is_seen() -> None:
    counter = StepCounter(EngineConfig(model="none", kv_window=32, kv_sink_tokens=4), None)
    # One page of sinks, two of the window, one that it may touch.
    assert counter.target([item(180, 1, 12)], None) == (1, 1, 1, 1, 4 * 16, 4 * 16)
    assert StepCounter(EngineConfig(model="none"), 32).target([item(180, 1, 12)], None)[4] == 3 * 16


def test_counts_of_a_draft_model_by_hand() -> None:
    counter = StepCounter(EngineConfig(model="none"), None)
    step = [item(100, 1, 7, 3, drafted=99), item(60, 1, 4, 2, drafted=0)]
    spans = [DraftSpan(0, 99, 101, True), DraftSpan(1, 0, 32, False)]
    # Three passes: 2 rows and 32 to catch up, then 1 and 1; only the first sequence guesses.
    assert counter.draft(step, spans, [3, 0]) == (3, 36, (7 * 3 + 4) * 16)
    assert counter.draft(step, [], [0, 0]) == (0, 0, 0)


def test_those_far_behind_share_what_a_step_may_make_up() -> None:
    config = EngineConfig(model="none", draft_model="none", num_speculative_tokens=2, prefill_chunk_size=50)
    step = [item(100, 1, 7, 2, drafted=99), item(80, 1, 6, 2), item(90, 1, 6, 2), item(90, 1, 6, 0)]
    assert draft_spans(step, config) == [DraftSpan(0, 99, 101, True), DraftSpan(1, 0, 50, False)]


@settings(max_examples=25)
@given(st.lists(st.sampled_from([0.0, 1e-6, 1e-4, 1e-3]), min_size=9, max_size=9), st.integers(0, 1000))
def test_a_fit_finds_planted_coefficients(planted: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.uniform(0, [1, 500, 64, 6, 30_000, 60_000, 4, 80, 20_000], (200, 9)).round()
    counts[:, 0] = 1
    seconds = counts @ np.array(planted) + 1e-3
    found = fit({"a": list(zip(map(tuple, counts.tolist()), seconds.tolist(), strict=True))})["a"]
    expected = [planted[0] + 1e-3, *planted[1:]]
    assert found.coefficients == pytest.approx(expected, rel=1e-3, abs=1e-9) and found.error < 1e-6


def test_precisions_share_what_storage_does_not_change() -> None:
    """Few steps of one of them, none with a draft model: the other says what a draft model costs."""
    rng = np.random.default_rng(1)
    scales = [1, 500, 64, 6, 30_000, 60_000, 4, 80, 20_000]
    common = np.array([0.0, 0.0, 1e-4, 3e-4, 0.0, 5e-8, 1e-3, 1e-5, 2e-6])
    own = {"a": [1e-3, 6e-5, 1e-6], "b": [2e-3, 7e-5, 3e-6]}
    samples, planted = {}, {}
    for name, steps in (("a", 300), ("b", 25)):
        planted[name] = common.copy()
        planted[name][[0, 1, 4]] = own[name]
        counts = rng.uniform(0, scales, (steps, 9)).round()
        counts[:, 0] = 1
        if name == "b":
            counts[:, 6:] = 0
        samples[name] = list(zip(map(tuple, counts.tolist()), (counts @ planted[name]).tolist(), strict=True))
    found = fit(samples)
    for name in own:
        assert found[name].coefficients == pytest.approx(planted[name].tolist(), rel=1e-3, abs=1e-9)
    assert (found["a"].samples, found["b"].samples) == (300, 25)


def test_slow_moments_of_the_machine_do_not_bend_it() -> None:
    rng = np.random.default_rng(0)
    counts = [(1.0, rows, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0) for rows in rng.integers(1, 400, 200).tolist()]
    seconds = [0.004 + 5e-5 * row[1] for row in counts]
    slowed = [time * (5 if index % 10 == 0 else 1) for index, time in enumerate(seconds)]
    found = fit({"a": list(zip(counts, slowed, strict=True))})["a"]
    error = max(abs(found.seconds(row) / time - 1) for row, time in zip(counts, seconds, strict=True))
    assert error < 0.05 and found.samples == 200


def test_no_coefficient_is_negative() -> None:
    """More rows in less time is noise, not a law."""
    counts = [(1.0, float(rows), *[0.0] * 7) for rows in range(1, 40)]
    assert fit({"a": [(row, 0.01 - 1e-4 * row[1]) for row in counts]})["a"].coefficients[1] == 0.0
    with pytest.raises(ValueError, match="at least two timed steps"):
        fit({"a": [(counts[0], 1.0)]})
    with pytest.raises(ValueError, match="expected 9 numbers of at least 0"):
        StepModel((-1.0, *[0.0] * 8))


@pytest.mark.parametrize(
    ("guesses", "rates"),
    [
        ([], ()),
        ([(2, 0)] * 10_000, (0.0,)),  # the second guess was never put to the test
        ([(2, 2)] * 5_000 + [(2, 1)] * 5_000, (1.0, 0.5)),
        ([(1, 1)] * 7_000 + [(1, 0)] * 3_000, (0.7,)),
        ([(1, 1)], (0.75,)),  # half an observation stands for not knowing
    ],
)
def test_acceptance_of_a_position_given_those_before_it(
    guesses: list[tuple[int, int]], rates: tuple[float, ...]
) -> None:
    assert acceptance(guesses) == pytest.approx(rates, abs=1e-3)


def timed(rows: int, seconds: float) -> TimedStep:
    return TimedStep((1, rows, 1, 1, 0, 0, 0, 0, 0), seconds)


def test_a_profile_has_a_model_of_each_precision_that_ran_long_enough() -> None:
    records: list[Setting | TimedStep] = [SETTING, *(timed(rows, 0.01 + 0.001 * rows) for rows in range(1, 60))]
    records += [Setting("m/auto/int8", "float32"), timed(1, 1.0)]
    found = profile_of(records)
    assert list(found.models) == ["m/auto/auto"] and found.compute_dtype == "float32"
    counts = (1.0, 100.0, 1.0, 1.0, *[0.0] * 5)
    assert found.models["m/auto/auto"].seconds(counts) == pytest.approx(0.11, rel=0.01)
    assert found.slower(2.0).models["m/auto/auto"].seconds(counts) == pytest.approx(0.22, rel=0.01)
    with pytest.raises(ValueError, match="at least 30 timed steps"):
        profile_of(records[-2:])
    with pytest.raises(ValueError, match="at least 30 timed steps"):
        profile_of([])


async def test_a_logged_engine_writes_what_it_computes(tiny_llama: Path, tiny_draft: Path, tmp_path: Path) -> None:
    log = tmp_path / "steps.log"
    settings = {"model": str(tiny_llama), "draft_model": str(tiny_draft), "prefill_chunk_size": 16}
    with running(settings, "--step-log", str(log)) as engine:
        async with engine.client() as client, aiohttp.ClientSession(engine.url) as http:
            ask = functools.partial(client.completions.create, model=tiny_llama.name, extra_body={"ignore_eos": True})
            await ask(prompt=list(range(10, 50)), max_tokens=8)
            async with http.post("/reconfigure", json={"changes": {"num_speculative_tokens": 2}}) as response:
                assert response.status == 200
            await ask(prompt=list(range(10, 50)), max_tokens=8)
    records = list(read_step_log(log))
    assert [type(r).__name__ for r in records if isinstance(r, Setting)] == ["Setting"] * 2
    assert records[0] == Setting(f"{tiny_llama.name}/auto/auto", "float32")
    turn = next(i for i, record in enumerate(records[1:], 1) if isinstance(record, Setting))
    plain = [record for record in records[1:turn] if isinstance(record, TimedStep)]
    # A prompt of 40 in chunks of 16, then seven more tokens; the pages are of 16 too.
    assert [step.counts[1] for step in plain] == [16, 16, 8, *[1] * 7]
    assert [step.counts[4] for step in plain] == [16, 32, 48, *[48] * 7]
    assert all(0 < step.seconds < 30 and not step.guesses for step in plain)
    guessed = [step for step in records[turn:] if isinstance(step, TimedStep) and step.guesses]
    assert guessed and all(step.counts[6] == step.guesses[0][0] for step in guessed)  # a pass of the draft a guess
    made = sum(1 + stood for step in guessed for _, stood in step.guesses)
    assert made >= 8 - 1 - sum(not step.guesses for step in plain)


def test_a_log_that_was_cut_off_is_read_to_its_last_whole_record(tmp_path: Path) -> None:
    log = tmp_path / "steps.log"
    data = pack(SETTING) + pack(timed(3, 0.5))
    log.write_bytes(data + pack(timed(4, 0.5))[:-3])
    assert list(read_step_log(log)) == [SETTING, timed(3, 0.5)]
