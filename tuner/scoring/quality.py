"""Quality of the answers against the full-precision reference, slice by slice (docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tuner.scoring.clusters import clustered_share_bounds, mean_bounds
from tuner.scoring.distance import Distance, FloatArray, distance
from tuner.scoring.intervals import proportion_lower
from tuner.scoring.probes import FULL, ProbeKind, ProbeRecord, check_slices

BOOTSTRAP_SAMPLES = 2000
BOOTSTRAP_SEED = 0
TAIL_PERCENTILE = 99
Pairs = Sequence[tuple[ProbeRecord, ProbeRecord]]
"""(reference, measured) of each probe."""


@dataclass(frozen=True, slots=True)
class Floor:
    """What a slice may lose; the 95 % bound is held against each. forced: max_nll_increase (nats per token), max_flips
    (share of positions) and max_kl (nats per position; None: any). min_recall: share of the reference's right answers
    that must stay right (recall)."""

    max_nll_increase: float = 0.02
    min_recall: float = 0.9
    max_flips: float | None = None
    max_kl: float | None = None


@dataclass(frozen=True, slots=True)
class SliceQuality:
    """One slice against the reference. Bounds are one-sided 95 %, the document (probe) being the cluster.

    forced slices, of `positions`: nll_increase (mean paired difference, nats per token), kl (mean, nats per position),
    kl_tail (its 99th percentile), flips (share of positions whose argmax changed, and matters), each with its upper
    bound; accuracy and reference_accuracy (share of positions whose argmax is the target's token). recall slices:
    recall, reference_recall (shares of all probes answered right), retention (share of the reference's right answers
    kept) with retention_lower. floor: what the first bound is held against; violation: signed, <= 0 when every floor
    of the slice holds, else by how much the worst missed. hopeless: even the other end of the bound misses a floor.
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
    positions: int | None = None
    flips_upper: float | None = None
    kl: float | None = None
    kl_upper: float | None = None
    kl_tail: float | None = None
    accuracy: float | None = None
    reference_accuracy: float | None = None
    hopeless: bool = False
    nll_increase_lower: float | None = None


@dataclass(frozen=True, slots=True)
class QualityScore:
    """All slices and one number, 1 = indistinguishable from the reference (formula: docs/metrics.md).

    complete: every gate up to FULL was passed; else some probes were not asked, for the first gate was hopeless.
    """

    value: float
    low: float
    high: float
    slices: tuple[SliceQuality, ...]
    complete: bool = True

    @property
    def hopeless(self) -> bool:
        """Whether some slice has lost for certain."""
        return any(found.hopeless for found in self.slices)


def quality_score(
    reference: Sequence[ProbeRecord], records: Sequence[ProbeRecord], floors: Mapping[str, Floor]
) -> QualityScore:
    """Score probe records against the reference's, paired by probe id. floors: slice -> floor, one for each slice.

    records: all of the reference's probes up to some gate. Raises ValueError when they are not, or were not asked the
    same tokens.
    """
    pairs, complete = _pair(reference, records)
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
    return QualityScore(float(np.mean([_slice_value(s) for s in slices])), low, high, tuple(slices), complete)


def _pair(reference: Sequence[ProbeRecord], records: Sequence[ProbeRecord]) -> tuple[Pairs, bool]:
    """The pairs in the order of probe ids, so that the order of the records changes nothing; and whether the gates
    up to FULL are among them."""
    check_slices(reference, "reference records")
    last = max((record.gate for record in records), default=FULL)
    expected = {record.probe_id: record for record in reference if record.gate <= last}
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
    return pairs, last >= FULL or all(record.gate <= last for record in reference)


def _score_forced(name: str, pairs: Pairs, floor: Floor, rng: np.random.Generator) -> tuple[SliceQuality, FloatArray]:
    found = [distance(ref, got) for ref, got in pairs]
    increase = np.array([d.increase for d in found])
    changed, positions = np.array([d.flips for d in found]), np.array([d.positions for d in found])
    nll = mean_bounds(increase)
    flips = clustered_share_bounds(changed, positions)
    divergence = [d.kl for d in found if d.kl is not None]
    whole = len(divergence) == len(found)
    kl = mean_bounds([float(values.mean()) for values in divergence]) if whole else None
    held = [(nll, floor.max_nll_increase), (flips, floor.max_flips), (kl, floor.max_kl)]
    tested = [(bounds, limit) for bounds, limit in held if bounds is not None and limit is not None]
    scored = SliceQuality(
        name, "forced", len(pairs),
        violation=max(bounds[1] - limit for bounds, limit in tested),
        floor=floor.max_nll_increase,
        nll_increase=float(increase.mean()), nll_increase_upper=nll[1],
        flips=float(changed.sum() / positions.sum()), flips_upper=flips[1],
        positions=int(positions.sum()),
        accuracy=_share([d.right for d in found], found),
        reference_accuracy=_share([d.reference_right for d in found], found),
        kl=None if kl is None else float(np.mean([values.mean() for values in divergence])),
        kl_upper=None if kl is None else kl[1],
        kl_tail=None if kl is None else float(np.percentile(np.concatenate(divergence), TAIL_PERCENTILE)),
        nll_increase_lower=nll[0],
        hopeless=any(bounds[0] > limit for bounds, limit in tested),
    )  # fmt: skip
    draw = rng.integers(0, len(pairs), size=(BOOTSTRAP_SAMPLES, len(pairs)))
    flipped = changed[draw].sum(axis=1) / positions[draw].sum(axis=1)
    return scored, np.exp(-np.maximum(increase[draw].mean(axis=1), 0.0)) * (1.0 - flipped)


def _share(counts: Sequence[int], found: Sequence[Distance]) -> float:
    return sum(counts) / sum(d.positions for d in found)


def _score_recall(name: str, pairs: Pairs, floor: Floor, rng: np.random.Generator) -> tuple[SliceQuality, FloatArray]:
    kept = np.array([bool(got.correct) for ref, got in pairs if ref.correct])
    n, right = len(pairs), len(kept)
    lower = proportion_lower(int(kept.sum()), right)
    found = SliceQuality(
        name, "recall", n, floor.min_recall - lower, floor.min_recall,
        recall=sum(bool(got.correct) for _, got in pairs) / n,
        reference_recall=right / n,
        retention=float(kept.mean()) if right else 1.0,
        retention_lower=lower,
        hopeless=1.0 - proportion_lower(int(right - kept.sum()), right) < floor.min_recall,
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
