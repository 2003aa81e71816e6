"""Quality of the answers against the full-precision reference, slice by slice (docs/metrics.md)."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from tuner.scoring.intervals import CONFIDENCE, proportion_lower

ProbeKind = Literal["forced", "recall"]
FloatArray = npt.NDArray[np.float64]
BOOTSTRAP_SAMPLES = 2000
BOOTSTRAP_SEED = 0
WORST_LOGPROB = -50.0


@dataclass(frozen=True, slots=True)
class Probe:
    """One question to the model. forced: `target` is fed token by token and scored by log-probability.
    recall: the answer is generated greedily and compared with `target`."""

    id: str
    slice: str
    kind: ProbeKind
    prompt: str
    target: str


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """What the engine answered to one probe; raw.

    tokens, logprobs (natural log), top_tokens (argmax at each position): the forced target. For recall probes they
    are empty and `correct` says whether the generated answer equals the target.
    """

    probe_id: str
    slice: str
    kind: ProbeKind
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_tokens: tuple[int, ...] = ()
    correct: bool | None = None


@dataclass(frozen=True, slots=True)
class Floor:
    """What a slice may lose. max_nll_increase: nats per token (forced). min_recall: share of the reference's right
    answers that must stay right (recall)."""

    max_nll_increase: float = 0.02
    min_recall: float = 0.9


@dataclass(frozen=True, slots=True)
class SliceQuality:
    """One slice against the reference. Bounds are one-sided 95 %.

    forced slices: nll_increase (mean paired difference, nats per token) with nll_increase_upper, and flips (share of
    positions whose argmax changed). recall slices: recall, reference_recall (shares of all probes answered right),
    retention (share of the reference's right answers kept) with retention_lower. floor: what the bound is held
    against; violation: signed, <= 0 when the floor holds.
    """

    name: str
    kind: ProbeKind
    probes: int
    violation: float
    floor: float
    nll_increase: float | None = None
    nll_increase_upper: float | None = None
    flips: float | None = None
    recall: float | None = None
    reference_recall: float | None = None
    retention: float | None = None
    retention_lower: float | None = None


@dataclass(frozen=True, slots=True)
class QualityScore:
    """All slices and one number, 1 = indistinguishable from the reference (formula: docs/metrics.md)."""

    value: float
    low: float
    high: float
    slices: tuple[SliceQuality, ...]


def load_probes(path: Path) -> tuple[Probe, ...]:
    """Read probes from JSONL, one {"id", "slice", "kind", "prompt", "target"} a line; blank lines are skipped.

    Raises ValueError naming file and line; prompts and targets are never quoted.
    """
    try:
        # Not splitlines(): JSON may hold U+2028 and its kin inside a text.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as UTF-8 text: {type(error).__name__}") from None
    probes: dict[str, Probe] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        probe = _parse_probe(line, f"{path}:{number}")
        if probe.id in probes:
            raise ValueError(f"{path}:{number}: id {probe.id!r} is used twice")
        probes[probe.id] = probe
    if not probes:
        raise ValueError(f"{path}: no probes; expected one JSON object a line")
    _check_slices(list(probes.values()), str(path))
    return tuple(probes.values())


def _parse_probe(line: str, where: str) -> Probe:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(values).__name__}")
    names = [field.name for field in fields(Probe)]
    for key in values.keys() - names:
        near = difflib.get_close_matches(key, names, n=1)
        raise ValueError(f"{where}: {key}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))
    for name in names:
        if not isinstance(values.get(name), str) or not values[name]:
            raise ValueError(f"{where}: {name}: expected a text that is not empty")
    if values["kind"] not in get_args(ProbeKind):
        raise ValueError(f"{where}: kind: expected {' or '.join(get_args(ProbeKind))} (given: {values['kind']!r})")
    return Probe(**values)


def _check_slices(probes: Sequence[Probe | ProbeRecord], where: str) -> None:
    for name in sorted({probe.slice for probe in probes}):
        members = [probe for probe in probes if probe.slice == name]
        if len({probe.kind for probe in members}) > 1:
            raise ValueError(f"{where}: slice {name!r} mixes forced and recall probes; give each kind its own slice")
        if members[0].kind == "forced" and len(members) < 2:
            raise ValueError(f"{where}: slice {name!r} has one forced probe; a bound needs at least two")


def quality_score(
    reference: Sequence[ProbeRecord], records: Sequence[ProbeRecord], floors: Mapping[str, Floor]
) -> QualityScore:
    """Score probe records against the reference's, paired by probe id. floors: slice -> floor, one for each slice.

    Raises ValueError when the two do not answer the same probes with the same forced tokens.
    """
    pairs = _pair(reference, records)
    slices: list[SliceQuality] = []
    replicates: list[FloatArray] = []
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    for name in sorted({ref.slice for ref, _ in pairs}):
        members = [pair for pair in pairs if pair[0].slice == name]
        score = _score_forced if members[0][0].kind == "forced" else _score_recall
        found, resampled = score(name, members, floors[name], rng)
        slices.append(found)
        replicates.append(resampled)
    low, high = np.percentile(np.mean(replicates, axis=0), [2.5, 97.5]).tolist()
    return QualityScore(float(np.mean([_slice_value(s) for s in slices])), low, high, tuple(slices))


def _pair(reference: Sequence[ProbeRecord], records: Sequence[ProbeRecord]) -> list[tuple[ProbeRecord, ProbeRecord]]:
    """(reference, measured) in the order of probe ids, so that the order of the records changes nothing."""
    _check_slices(reference, "reference records")
    expected = {record.probe_id: record for record in reference}
    measured = {record.probe_id: record for record in records}
    if not expected or expected.keys() != measured.keys():
        missing, unknown = sorted(expected.keys() - measured.keys()), sorted(measured.keys() - expected.keys())
        raise ValueError(
            f"probe records do not match the reference's {len(expected)}: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}; were the probes changed? measure the reference again"
        )
    pairs = [(expected[probe_id], measured[probe_id]) for probe_id in sorted(expected)]
    for ref, got in pairs:
        if (ref.slice, ref.kind, ref.tokens) != (got.slice, got.kind, got.tokens):
            raise ValueError(f"probe {ref.probe_id}: slice, kind or tokens differ from the reference's")
        if not all(map(math.isfinite, ref.logprobs)):
            raise ValueError(f"probe {ref.probe_id}: the reference itself has a log-probability that is no number")
        assert len(got.logprobs) == len(got.top_tokens) == len(ref.logprobs) == len(got.tokens), ref.probe_id
        assert ref.kind == "recall" or got.tokens, f"{ref.probe_id}: a forced probe without tokens"
        assert ref.kind == "forced" or None not in (ref.correct, got.correct), ref.probe_id
    return pairs


def _score_forced(
    name: str, pairs: Sequence[tuple[ProbeRecord, ProbeRecord]], floor: Floor, rng: np.random.Generator
) -> tuple[SliceQuality, FloatArray]:
    increase = np.array([_nll(got) - _nll(ref) for ref, got in pairs])
    changed = np.array([sum(a != b for a, b in zip(r.top_tokens, g.top_tokens, strict=True)) for r, g in pairs])
    positions = np.array([len(ref.tokens) for ref, _ in pairs])
    n, mean = len(pairs), float(increase.mean())
    # The probe is the cluster: positions of one document are not independent, documents are.
    upper = mean + float(student_t.ppf(CONFIDENCE, n - 1)) * float(increase.std(ddof=1)) / math.sqrt(n)
    found = SliceQuality(
        name, "forced", n, upper - floor.max_nll_increase, floor.max_nll_increase,
        nll_increase=mean, nll_increase_upper=upper, flips=float(changed.sum() / positions.sum()),
    )  # fmt: skip
    draw = rng.integers(0, n, size=(BOOTSTRAP_SAMPLES, n))
    flips = changed[draw].sum(axis=1) / positions[draw].sum(axis=1)
    return found, np.exp(-np.maximum(increase[draw].mean(axis=1), 0.0)) * (1.0 - flips)


def _score_recall(
    name: str, pairs: Sequence[tuple[ProbeRecord, ProbeRecord]], floor: Floor, rng: np.random.Generator
) -> tuple[SliceQuality, FloatArray]:
    kept = np.array([bool(got.correct) for ref, got in pairs if ref.correct])
    n, right = len(pairs), len(kept)
    lower = proportion_lower(int(kept.sum()), right)
    found = SliceQuality(
        name, "recall", n, floor.min_recall - lower, floor.min_recall,
        recall=sum(bool(got.correct) for _, got in pairs) / n,
        reference_recall=right / n,
        retention=float(kept.mean()) if right else 1.0,
        retention_lower=lower,
    )  # fmt: skip
    if not right:
        return found, np.ones(BOOTSTRAP_SAMPLES)
    return found, kept[rng.integers(0, right, size=(BOOTSTRAP_SAMPLES, right))].mean(axis=1)


def _slice_value(found: SliceQuality) -> float:
    if found.kind == "recall":
        assert found.retention is not None
        return found.retention
    assert found.nll_increase is not None and found.flips is not None
    return math.exp(-max(found.nll_increase, 0.0)) * (1.0 - found.flips)


def _nll(record: ProbeRecord) -> float:
    """Nats per token. A log-probability that is no number (broken logits) counts as a token all but impossible."""
    values = [max(p, WORST_LOGPROB) if math.isfinite(p) else WORST_LOGPROB for p in record.logprobs]
    return -sum(values) / len(values)
