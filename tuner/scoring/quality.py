"""Quality of the answers against the full-precision reference, slice by slice (docs/metrics.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ProbeKind = Literal["forced", "recall"]


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
