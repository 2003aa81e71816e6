"""What two engines' answers to the same probes share, and how many probes would settle the rest (docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from tuner.scoring.distance import distance
from tuner.scoring.intervals import CONFIDENCE, proportion_interval
from tuner.scoring.probes import Probe, ProbeRecord

POWER = 0.8
DEPTHS = (0.0, 1 / 3, 2 / 3)
LENGTHS = (0, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Where cells of the recall grid begin: shares of the prompt, and tokens."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Greedy answers of one slice. equal: those that are the same text, with a 95 % interval of their share; shared:
    mean share of an answer up to the first difference."""

    slice: str
    probes: int
    equal: int
    low: float
    high: float
    shared: float


@dataclass(frozen=True, slots=True)
class RecallCell:
    """Recall probes whose answer stands at [depth, next depth) of a prompt of [length, next length) tokens."""

    depth: float
    length: int
    probes: int
    right_a: int
    right_b: int


def agreement(probes: Sequence[Probe], a: Mapping[str, str], b: Mapping[str, str]) -> tuple[Agreement, ...]:
    """Slice by slice; a, b: probe id -> greedy answer."""
    found = []
    for name in sorted({probe.slice for probe in probes if probe.id in a}):
        texts = [(a[p.id], b[p.id]) for p in probes if p.slice == name and p.id in a]
        equal = sum(one == other for one, other in texts)
        low, high = proportion_interval(equal, len(texts))
        shared = float(np.mean([_shared(one, other) for one, other in texts]))
        found.append(Agreement(name, len(texts), equal, low, high, shared))
    return tuple(found)


def _shared(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    same = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))
    return same / longest if longest else 1.0


def recall_grid(a: Sequence[ProbeRecord], b: Sequence[ProbeRecord]) -> tuple[RecallCell, ...]:
    """Recall by needle depth and prompt length, of the probes that say both."""
    others = {record.probe_id: record for record in b}
    cells: dict[tuple[float, int], list[tuple[bool, bool]]] = {}
    for record in a:
        if record.kind == "recall" and record.depth is not None and record.length is not None:
            at = (max(d for d in DEPTHS if d <= record.depth), max(n for n in LENGTHS if n <= record.length))
            cells.setdefault(at, []).append((bool(record.correct), bool(others[record.probe_id].correct)))
    return tuple(
        RecallCell(*at, len(pairs), sum(x for x, _ in pairs), sum(y for _, y in pairs))
        for at, pairs in sorted(cells.items())
    )


def probes_needed(reference: Sequence[ProbeRecord], records: Sequence[ProbeRecord], margin: float) -> int | None:
    """Forced probes with which a configuration that loses nothing is acquitted in 80 of 100 tests at 95 %.

    n = ((z.95 + z.80) sd / margin)^2, sd of the paired differences of documents (Miller 2024, arXiv 2411.00640). None
    without two forced probes or a margin above 0.
    """
    measured = {record.probe_id: record for record in records}
    paired = [distance(r, measured[r.probe_id]).increase for r in reference if r.kind == "forced"]
    if len(paired) < 2 or margin <= 0:
        return None
    z = float(norm.ppf(CONFIDENCE) + norm.ppf(POWER))
    return max(2, math.ceil((z * float(np.std(paired, ddof=1)) / margin) ** 2))
