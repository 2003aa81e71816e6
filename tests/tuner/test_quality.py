"""Quality against the reference: bounds, floors, and one number that is exactly 1 for the reference itself."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from tests.fakes import cases
from tests.tuner.builders import forced, recall
from tuner.scoring.probes import FULL, SCREEN, Probe, ProbeRecord, against, load_probes, screened
from tuner.scoring.quality import Floor, quality_score

FLOORS = {"text": Floor(max_nll_increase=0.02), "facts": Floor(min_recall=0.9)}
REFERENCE = [forced(f"t{i}", [-1.0, -0.5 - 0.01 * i]) for i in range(40)] + [recall(f"f{i}", True) for i in range(60)]
PROBE = {"id": "a", "slice": "facts", "kind": "recall", "prompt": "canary text", "target": "7"}


def test_the_reference_against_itself_is_exactly_one_and_holds_every_floor() -> None:
    found = quality_score(REFERENCE, REFERENCE[::-1], FLOORS)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert [part.name for part in found.slices] == ["facts", "text"]
    assert all(part.violation <= 0.0 for part in found.slices)


def test_without_skew_the_bound_of_a_forced_slice_is_the_one_sided_t_interval_over_probes() -> None:
    half = np.random.default_rng(1).normal(0.0, 0.1, size=15)
    losses = 0.05 + np.concatenate((half, -half))
    reference = [forced(f"p{i}", [-1.0] * (i + 1)) for i in range(30)]
    measured = [forced(f"p{i}", [-1.0 - loss] * (i + 1)) for i, loss in enumerate(losses)]
    (part,) = quality_score(reference, measured, FLOORS).slices

    oracle = ttest_1samp(losses, 0.0, alternative="less").confidence_interval(0.95)
    assert part.nll_increase == pytest.approx(losses.mean())
    assert part.nll_increase_upper == pytest.approx(oracle.high)
    assert part.violation == pytest.approx(oracle.high - 0.02)


def test_the_bound_of_a_recall_slice_is_on_what_the_reference_got_right() -> None:
    reference = [recall(f"p{i}", i < 40) for i in range(50)]
    measured = [recall(f"p{i}", i < 37 or i == 45) for i in range(50)]
    (part,) = quality_score(reference, measured, FLOORS).slices

    oracle = binomtest(37, 40, alternative="greater").proportion_ci(0.95, method="exact")
    assert (part.recall, part.reference_recall, part.retention) == pytest.approx((0.76, 0.8, 0.925))
    assert part.retention_lower == pytest.approx(oracle.low)
    assert part.violation == pytest.approx(0.9 - oracle.low)


def test_flips_are_counted_over_positions_and_lower_the_value() -> None:
    reference = [forced("a", [-1.0] * 3), forced("b", [-1.0] * 1)]
    measured = [forced("a", [-1.0] * 3, top=[0, 9, 2]), forced("b", [-1.0])]
    found = quality_score(reference, measured, FLOORS)
    assert (found.slices[0].flips, found.value) == (0.25, 0.75)
    assert found.low < found.value <= found.high


def test_the_value_is_the_mean_over_slices() -> None:
    measured = [
        *(forced(r.probe_id, [p - math.log(2) for p in r.logprobs]) for r in REFERENCE[:40]),
        *(recall(r.probe_id, i % 2 == 0) for i, r in enumerate(REFERENCE[40:])),
    ]
    assert quality_score(REFERENCE, measured, FLOORS).value == pytest.approx((0.5 + 0.5) / 2)


def test_the_interval_is_the_same_at_every_reading() -> None:
    measured = [*REFERENCE[:40], *(recall(r.probe_id, i % 3 > 0) for i, r in enumerate(REFERENCE[40:]))]
    found = quality_score(REFERENCE, measured, FLOORS)
    assert found.low < found.value < found.high
    assert quality_score(REFERENCE[::-1], measured[::-1], FLOORS) == found


def test_a_gain_on_the_reference_is_not_paid_for() -> None:
    better = [forced(f"t{i}", [-0.5, -0.4]) for i in range(40)]
    assert quality_score(REFERENCE[:40], better, FLOORS).value == 1.0


def test_broken_logits_cost_quality_and_never_yield_a_number_that_is_none() -> None:
    broken = [forced(f"t{i}", [math.nan, -math.inf]) for i in range(40)]
    found = quality_score(REFERENCE[:40], broken, FLOORS)
    assert found.value < 1e-6 and found.slices[0].violation > 10


def test_a_slice_of_which_the_reference_knows_nothing_proves_nothing() -> None:
    records = [recall("a", False), recall("b", False)]
    (part,) = quality_score(records, records, FLOORS).slices
    assert (part.retention, part.retention_lower, part.violation) == (1.0, 0.0, 0.9)


def listing(*probabilities: float) -> bytes:
    """Log-probabilities of all tokens but the last, which is the rest, at each of two positions."""
    return np.log(np.array([probabilities] * 2), dtype=np.float32).tobytes()


def test_every_floor_of_a_forced_slice_is_held_against_its_own_bound() -> None:
    def record(i: int, *probabilities: float, top: int = 0) -> ProbeRecord:
        return replace(forced(f"t{i}", [-1.0, -1.0], top=[top, 1]), listed_logprobs=listing(*probabilities))

    reference = [record(i, 0.6, 0.3, 0.1) for i in range(10)]
    measured = [record(i, 0.5, 0.4, 0.1, top=7 if i < 2 else 0) for i in range(10)]
    (part,) = quality_score(reference, measured, {"text": Floor()}).slices
    divergence = 0.6 * math.log(0.6 / 0.5) + 0.3 * math.log(0.3 / 0.4)
    assert (part.kl, part.kl_upper, part.kl_tail) == pytest.approx((divergence,) * 3, rel=1e-5)
    assert (part.flips, part.positions, part.violation) == (0.1, 20, -0.02)
    assert part.flips_upper is not None and 0.1 < part.flips_upper < 0.4
    floors = (Floor(max_kl=0.01), Floor(max_flips=0.05))
    kl, flips = (quality_score(reference, measured, {"text": floor}).slices[0] for floor in floors)
    assert kl.violation == pytest.approx(divergence - 0.01, rel=1e-4) and kl.hopeless
    assert flips.violation == pytest.approx(part.flips_upper - 0.05) and not flips.hopeless


def test_a_flip_between_two_tokens_that_the_reference_cannot_tell_apart_does_not_matter() -> None:
    for share, flips in ((0.451, 0.0), (0.46, 0.5)):
        reference = [replace(forced(n, [-1, -1]), listed_logprobs=listing(share, 0.45, 0.55 - share)) for n in "ab"]
        measured = [replace(record, top_tokens=(5, 1)) for record in reference]
        assert quality_score(reference, measured, FLOORS).slices[0].flips == flips


@pytest.mark.parametrize(
    "right, hopeless", cases([("most forgotten", 3, True), ("two of eight", 6, False), ("all kept", 8, False)])
)
def test_a_first_gate_stops_what_has_lost_for_certain_and_acquits_nobody(right: int, hopeless: bool) -> None:
    reference = [replace(recall(f"f{i}", True), gate=SCREEN if i < 8 else FULL) for i in range(40)]
    screen = [replace(record, correct=i < right) for i, record in enumerate(reference[:8])]
    found = quality_score(reference, screen, FLOORS)
    assert (found.hopeless, found.complete) == (hopeless, False)


@given(st.lists(st.booleans(), min_size=60, max_size=60), st.integers(0, 59))
def test_losing_one_more_answer_never_raises_quality(kept: list[bool], lost: int) -> None:
    def score(answers: list[bool]) -> tuple[float, float]:
        found = quality_score(REFERENCE[40:], [recall(f"f{i}", ok) for i, ok in enumerate(answers)], FLOORS)
        return found.value, -found.slices[0].violation

    fewer = [ok and i != lost for i, ok in enumerate(kept)]
    assert all(after <= before for after, before in zip(score(fewer), score(kept), strict=True))


@pytest.mark.parametrize(
    "reference, measured, message",
    cases(
        [
            ("a probe is missing", REFERENCE, REFERENCE[1:], r"reference's 100: 1 missing \['t0'\], 0 unknown"),
            ("a probe too many", REFERENCE[1:], REFERENCE, r"0 missing \[\], 1 unknown \['t0'\]"),
            ("nothing measured", REFERENCE, [], "100 missing"),
            ("other tokens", REFERENCE[:2], [forced("t0", [-1] * 3), REFERENCE[1]], "probe t0: slice, kind or tokens"),
            ("one forced probe", [forced("a", [-1])], [forced("a", [-1])], "slice 'text' has one forced probe"),
            (
                "a reference with no number",
                [forced("a", [math.nan]), forced("b", [-1])],
                [forced("a", [-1]), forced("b", [-1])],
                "probe a: the reference itself",
            ),
            ("two kinds in one slice", [recall("a", True, "text"), *REFERENCE[:2]], [], "mixes forced and recall"),
        ]
    ),
)
def test_records_that_do_not_fit_are_refused(
    reference: list[ProbeRecord], measured: list[ProbeRecord], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        quality_score(reference, measured, FLOORS)


def test_load_probes_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    probes = [PROBE | {"id": str(i), "prompt": f"line\u2028separator {i}"} for i in (1, 2)]
    path.write_text("\n\n".join(json.dumps(p, ensure_ascii=False) for p in probes) + "\n", encoding="utf-8")
    assert [(probe.id, probe.prompt) for probe in load_probes(path)] == [
        ("1", "line\u2028separator 1"),
        ("2", "line\u2028separator 2"),
    ]


@pytest.mark.parametrize(
    "second, message",
    cases(
        [
            ("not JSON", "{canary text", ":2: not JSON"),
            ("not an object", '["canary text"]', ":2: expected a JSON object, found list"),
            ("unknown key", json.dumps(PROBE | {"promt": "canary text"}), ":2: promt: .*did you mean prompt"),
            ("missing key", json.dumps({k: v for k, v in PROBE.items() if k != "slice"}), ":2: slice: expected a text"),
            ("empty target", json.dumps(PROBE | {"target": ""}), ":2: target: expected a text"),
            ("number for a text", json.dumps(PROBE | {"prompt": 5}), ":2: prompt: expected a text"),
            ("unknown kind", json.dumps(PROBE | {"id": "b", "kind": "recal"}), ":2: kind: expected forced or recall"),
            (
                "no such gate",
                json.dumps(PROBE | {"id": "b", "gate": 3}),
                ":2: gate: expected a whole number",
            ),
            ("a depth beyond the end", json.dumps(PROBE | {"id": "b", "depth": 2}), ":2: depth: expected a number"),
            ("a length that is none", json.dumps(PROBE | {"id": "b", "length": True}), ":2: length: expected a whole"),
            ("an id twice", json.dumps(PROBE), ":2: id 'a' is used twice"),
            ("two kinds in one slice", json.dumps(PROBE | {"id": "b", "kind": "forced"}), "mixes forced and recall"),
            ("one forced probe", json.dumps(PROBE | {"id": "b", "slice": "x", "kind": "forced"}), "one forced probe"),
            ("for finalists only", json.dumps(PROBE | {"id": "b", "slice": "x", "gate": 2}), "probes of gate 2 only"),
        ]
    ),
)
def test_bad_probe_files_are_refused_without_quoting_them(tmp_path: Path, second: str, message: str) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_text(json.dumps(PROBE) + "\n" + second + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_probes(path)
    assert str(path) in str(caught.value) and "canary" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", cases([("nothing in it", b"\n"), ("not text", b"\xff\xfe")]))
def test_files_without_probes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="probes.jsonl"):
        load_probes(path)
    with pytest.raises(ValueError, match="absent.jsonl"):
        load_probes(tmp_path / "absent.jsonl")


def test_some_of_every_slice_are_asked_first_unless_the_author_says_which() -> None:
    probes = [Probe(f"t{i}", "text", "forced", "x", "y") for i in range(12)]
    probes += [Probe(f"f{i}", "facts", "recall", "x", "y") for i in range(30)]
    asked = screened(probes)
    first = [probe.id for probe in asked if probe.gate == SCREEN]
    assert first == ["t0", "t1", "t2", *(f"f{i}" for i in range(8))]
    assert screened(asked) == asked


def test_a_configuration_is_asked_the_references_answers_and_likeliest_tokens() -> None:
    own = Probe("p", "production", "forced", (1, 2), ())
    answer = replace(forced("p", [-1.0]), tokens=(9,), listed_ids=b"1234")
    (probe,) = against([own], [answer])
    assert (probe.target, probe.listed_ids) == ((9,), b"1234")
    with pytest.raises(ValueError, match="no answer to 1 probes, 'p' first"):
        against([own], [])
