"""Speculation must change no answer; what it accepts by domain, and from where on it pays (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.optimize import brentq

from tuner.scoring.distance import FLIP_MARGIN


@dataclass(frozen=True, slots=True)
class Greedy:
    """One greedy answer. margins: nats between the two likeliest tokens at each position."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DomainSpeculation:
    """Greedy answers to prompts of one slice with speculation and without; raw.

    equal: those whose tokens are the same; tied: those that part where rounding may decide. drafted, accepted: tokens.
    step_seconds, plain_step_seconds: of one decode step with speculation and without, over all slices.
    """

    slice: str
    answers: int
    equal: int
    tied: int
    depth: int
    drafted: int
    accepted: int
    step_seconds: float
    plain_step_seconds: float

    @property
    def lossless(self) -> bool:
        """Whether no answer differs for another reason than a tie."""
        return self.equal + self.tied == self.answers

    @property
    def acceptance(self) -> float | None:
        """Accepted share of the drafted tokens; None when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def break_even(self) -> float | None:
        """Acceptance from which on speculation is faster; None: at none."""
        return break_even(self.depth, self.step_seconds / self.plain_step_seconds)


def same(with_: Greedy, without: Greedy) -> bool | None:
    """Whether two answers are equal; None when they part at a tie."""
    for one, other, margin in zip(with_.tokens, without.tokens, without.margins, strict=False):
        if one != other:
            return None if margin <= FLIP_MARGIN else False
    return len(with_.tokens) == len(without.tokens)


def count(pairs: Sequence[tuple[Greedy, Greedy]]) -> tuple[int, int]:
    """Equal and tied ones among (with, without) speculation."""
    found = [same(*pair) for pair in pairs]
    return sum(one is True for one in found), sum(one is None for one in found)


def break_even(depth: int, cost: float) -> float | None:
    """Acceptance a with (1 - a^(k+1)) / (1 - a) = cost: tokens a step equal to what it costs in plain steps.

    depth k: guesses a step. Source: Leviathan et al. 2023, the expected tokens of a step. None when even full
    acceptance does not pay.
    """
    if cost <= 1:
        return 0.0
    if cost >= depth + 1:
        return None
    return float(brentq(lambda a: sum(a**i for i in range(depth + 1)) - cost, 0.0, 1.0))
