"""Seeded distributions of prompt and answer lengths, in tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z90 = 1.2815515655446004
"""90 % quantile of the standard normal distribution."""
MAX_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class Lognormal:
    """By median and 90th percentile; draws are rounded and cut to [1, most]."""

    p50: float
    p90: float
    most: int = MAX_TOKENS

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        draws = rng.lognormal(math.log(self.p50), math.log(self.p90 / self.p50) / Z90, size=count)
        return np.clip(np.rint(draws), 1, self.most).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same."""

    tokens: int

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return np.full(count, self.tokens)


def parse_lengths(text: str) -> Lognormal | Fixed:
    """ "fixed:N", "lognormal:P50:P90" or "lognormal:P50:P90:MAX", in tokens. Raises ValueError."""
    kind, *values = text.split(":")
    try:
        numbers = [int(value) for value in values]
    except ValueError:
        numbers = []
    if kind == "fixed" and len(numbers) == 1 and 1 <= numbers[0] <= MAX_TOKENS:
        return Fixed(numbers[0])
    if kind == "lognormal" and len(numbers) in (2, 3) and 1 <= numbers[0] <= numbers[1] <= numbers[-1] <= MAX_TOKENS:
        return Lognormal(*numbers)
    raise ValueError(f"{text}: expected fixed:TOKENS or lognormal:P50:P90[:MAX] with 1 <= P50 <= P90 <= MAX")


def resampled(
    pairs: Sequence[tuple[int, int]], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Prompt and answer lengths drawn with replacement from recorded pairs, so that their correlation stays."""
    chosen = np.asarray(pairs)[rng.integers(len(pairs), size=count)]
    return chosen[:, 0], chosen[:, 1]
