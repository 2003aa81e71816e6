"""Numbers that describe traffic: arrivals, lengths, shared prefixes. Formulas: docs/metrics.md, section Traffic."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BIN_SECONDS = (1.0, 10.0, 60.0)
RANKS = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Dispersion:
    """Arrivals counted in bins of bin_seconds. index: variance over mean (Poisson: 1). peak_to_mean: fullest bin."""

    bin_seconds: float
    index: float
    peak_to_mean: float


@dataclass(frozen=True, slots=True)
class ArrivalStatistics:
    """span: seconds. rate: requests/s. gap_cv: standard deviation of the gaps over their mean (Poisson: 1).

    zero_gaps: share of the gaps. dispersion: of the bins of which at least two fit into the span. None: undefined.
    """

    requests: int
    span: float
    rate: float | None
    gap_mean: float | None
    gap_cv: float | None
    gap_max: float | None
    zero_gaps: float | None
    dispersion: tuple[Dispersion, ...]


@dataclass(frozen=True, slots=True)
class LengthStatistics:
    """Lengths in tokens, of the requests that tell one. percentiles: rank -> tokens, interpolated linearly."""

    requests: int
    total: int
    mean: float
    min: int
    percentiles: dict[int, float]
    max: int


@dataclass(frozen=True, slots=True)
class PrefixSharing:
    """What a prefix cache that never forgets would find, over the requests whose prompts are known or hashed.

    block_share, token_share: shares of the blocks and of the prompt tokens that are hit; a block is hit when it and all
    before it were in an earlier request.
    """

    requests: int
    blocks: int
    tokens: int
    block_share: float
    token_share: float


def arrival_statistics(arrivals: NDArray[np.float64], span: float) -> ArrivalStatistics:
    """arrivals: seconds from the start of the trace, ascending, at least one. span: seconds that were observed."""
    gaps = np.diff(arrivals)
    mean = float(gaps.mean()) if len(gaps) else 0.0
    return ArrivalStatistics(
        requests=len(arrivals),
        span=span,
        rate=len(arrivals) / span if span > 0 else None,
        gap_mean=mean if len(gaps) else None,
        gap_cv=float(gaps.std()) / mean if mean > 0 else None,
        gap_max=float(gaps.max()) if len(gaps) else None,
        zero_gaps=float((gaps == 0).mean()) if len(gaps) else None,
        dispersion=tuple(found for width in BIN_SECONDS if (found := _dispersion(arrivals, span, width)) is not None),
    )


def bin_counts(arrivals: NDArray[np.float64], span: float, width: float) -> NDArray[np.int64]:
    """Arrivals in each whole bin of `width` seconds from 0; the unfinished bin at the end is left out."""
    bins = int(span / width + 1e-9)
    places = np.floor(arrivals / width).astype(np.int64)
    return np.bincount(places[places < bins], minlength=bins)


def _dispersion(arrivals: NDArray[np.float64], span: float, width: float) -> Dispersion | None:
    counts = bin_counts(arrivals, span, width)
    if len(counts) < 2 or not counts.any():
        return None
    mean = float(counts.mean())
    return Dispersion(width, float(counts.var()) / mean, float(counts.max()) / mean)


def length_statistics(lengths: Sequence[int] | NDArray[np.int64]) -> LengthStatistics | None:
    """None where no request tells a length."""
    if len(lengths) == 0:
        return None
    values = np.asarray(lengths)
    ranks = dict(zip(RANKS, np.percentile(values, RANKS).tolist(), strict=True))
    return LengthStatistics(
        len(values), int(values.sum()), float(values.mean()), int(values.min()), ranks, int(values.max())
    )


def prefix_sharing(prompts: Iterable[tuple[Sequence[int], int, float]]) -> PrefixSharing | None:
    """prompts, in order of arrival: (chained hashes of the leading blocks, tokens of the prompt, tokens of a block).

    Order matters only to the tokens of blocks that are not full. None without prompts.
    """
    seen: set[int] = set()
    requests = blocks = hit_blocks = tokens = 0
    hit_tokens = 0.0
    for hashes, length, block_tokens in prompts:
        hits = sum(1 for _ in itertools.takewhile(seen.__contains__, hashes))
        seen.update(hashes)
        requests, blocks, tokens = requests + 1, blocks + len(hashes), tokens + length
        hit_blocks += hits
        hit_tokens += min(float(length), hits * block_tokens)
    if requests == 0:
        return None
    return PrefixSharing(requests, blocks, tokens, hit_blocks / max(1, blocks), hit_tokens / max(1, tokens))
