"""Finals: who is replayed again, and what may then be claimed. Pure functions; tuner/validation.py replays.

A replay at time scale s whose worst SLO constraint is v puts the capacity of its configuration at ln s - v / slope.
Repeats go where the doubt about the winner is (OCBA: Chen et al., Discrete Event Dynamic Systems 10, 2000); the choice
is by lower bound, and what is claimed is the highest rung that a further replay would hold with probability CONFIDENCE.
The replays of the search are not counted: the best of many noisy readings is too good (winner's curse).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import norm, t

FIRST_REPLAYS = 3
"""Of each candidate: the fewest of which a median says something."""
CONFIDENCE = 0.95
PRIOR_SD, PRIOR_DEGREES, OUTLIER = 0.05, 3.0, 2.0
"""Noise of one replay in ln load before any repeat, and the degrees of freedom that it counts for."""
SLOW = 0.14
"""ln load below what the search saw, one rung, to which first readings may send the next: one may have met a slow
moment, and far below the knee latency says little of the capacity."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """number: of its trial. expected: ln capacity that the search saw, for where to begin. replays: (time scale, worst
    SLO constraint) of those of the finals. out: it missed a quality floor or failed, and cannot be chosen."""

    number: int
    expected: float
    replays: Sequence[tuple[float, float]] = ()
    out: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one candidate's ln capacity: median of `count` replays, and the standard deviation of one, which was estimated
    with so many degrees of freedom."""

    mean: float
    deviation: float
    count: int
    degrees: float = PRIOR_DEGREES

    @property
    def low(self) -> float:
        """One-sided lower bound."""
        return self.mean - float(norm.ppf(CONFIDENCE)) * self.deviation / math.sqrt(max(self.count, 1))


def estimates(candidates: Sequence[Candidate], slope: float) -> list[Estimate]:
    """The noise is one for all candidates: PRIOR_SD, corrected by what their repeats show.

    One replay in ten meets a slow moment of the machine and lies far off: hence medians, and residuals that count for
    no more than OUTLIER times PRIOR_SD (winsorized, Huber 1964).
    """
    readings = [[math.log(scale) - v / slope for scale, v in one.replays] for one in candidates]
    squares, degrees = PRIOR_DEGREES * PRIOR_SD**2, PRIOR_DEGREES
    for found in readings:
        if len(found) > 1:
            residuals = (abs(value - statistics.median(found)) for value in found)
            squares += sum(min(residual, OUTLIER * PRIOR_SD) ** 2 for residual in residuals)
            degrees += len(found) - 1
    deviation = math.sqrt(squares / degrees)
    return [
        Estimate(statistics.median(found) if found else one.expected, deviation, len(found), degrees)
        for one, found in zip(candidates, readings, strict=True)
    ]


def allocation(found: Sequence[Estimate], total: int) -> list[float]:
    """Replays that each candidate should have in all: N_i ~ (sd_i / gap_i)^2 for the others, for the best
    sd_b sqrt(sum (N_i / sd_i)^2). Equal means share a gap of a tenth of the noise."""
    best = max(range(len(found)), key=lambda index: found[index].mean)
    if len(found) == 1:
        return [float(total)]
    shares = [0.0] * len(found)
    for index, one in enumerate(found):
        if index != best:
            gap = max(found[best].mean - one.mean, 0.1 * one.deviation)
            shares[index] = (one.deviation / gap) ** 2
    squares = sum((share / one.deviation) ** 2 for share, one in zip(shares, found, strict=True))
    shares[best] = found[best].deviation * math.sqrt(squares)
    return [total * share / sum(shares) for share in shares]


def larger(one: Estimate, other: Estimate) -> float:
    """Probability that the first has the larger capacity."""
    spread = math.sqrt(one.deviation**2 / max(one.count, 1) + other.deviation**2 / max(other.count, 1))
    return float(norm.cdf((one.mean - other.mean) / spread))


def decided(found: Sequence[Estimate]) -> float:
    """Least probability that the best mean is the best: 1 - sum P(another is better) (Bonferroni)."""
    best = max(found, key=lambda one: one.mean)
    return 1.0 - sum(larger(one, best) for one in found if one is not best)


def next_replay(
    candidates: Sequence[Candidate], ladder: Sequence[float], slope: float, replays: int
) -> tuple[int, int] | None:
    """The candidate to replay next (index) and the rung; None when the winner and what it may claim are decided, or
    `replays` are spent. Every candidate comes FIRST_REPLAYS times, the winner once at the rung that is claimed."""
    standing = [index for index, one in enumerate(candidates) if not one.out]
    spent = sum(len(one.replays) for one in candidates)
    if not standing or spent >= replays:
        return None
    # Who is out tells of the noise all the same, as in what is claimed in the end (tuner.worth).
    everyone = estimates(candidates, slope)
    found = {index: everyone[index] for index in standing}
    lacking = [index for index in standing if found[index].count < FIRST_REPLAYS]
    if lacking:
        index = min(lacking, key=lambda i: (found[i].count, -found[i].mean))
        return index, _rung(max(found[index].mean, candidates[index].expected - SLOW), ladder)
    best = max(standing, key=lambda i: found[i].mean)
    if decided(list(found.values())) >= CONFIDENCE:
        rung = unconfirmed(candidates[best], found[best], ladder)
        return None if rung is None else (best, rung)
    wanted = allocation(list(found.values()), spent + 1)
    lack = {i: want - found[i].count for i, want in zip(standing, wanted, strict=True)}
    index = max(standing, key=lambda i: lack[i])
    return index, _rung(found[index].mean, ladder)


def choose(candidates: Sequence[Candidate], slope: float) -> int | None:
    """Index of the candidate with the largest lower bound of ln capacity; the first wins ties."""
    found = estimates(candidates, slope)
    replayed = [i for i, one in enumerate(candidates) if not one.out and one.replays]
    return max(replayed, key=lambda i: found[i].low, default=None)


def claim(found: Estimate, ladder: Sequence[float]) -> int:
    """The highest rung that one more replay would hold with probability CONFIDENCE (prediction bound), -1 for none."""
    spread = found.deviation * math.sqrt(1 + 1 / max(found.count, 1))
    bound = found.mean - float(t.ppf(CONFIDENCE, found.degrees)) * spread
    return max((rung for rung, scale in enumerate(ladder) if math.log(scale) <= bound), default=-1)


def claimed(one: Candidate, found: Estimate, ladder: Sequence[float]) -> int:
    """The rung that a candidate is worth: claim()'s, or the next below it at which its replays did not mostly miss.
    Whether it holds the recorded rate, which is what is asked first, the median decides. -1 when no rung is held."""
    rung = _claim_or_recorded(found, ladder)
    while rung >= 0 and (held := _held(one, ladder[rung])) and not mostly(held):
        rung -= 1
    return rung


def unconfirmed(one: Candidate, found: Estimate, ladder: Sequence[float]) -> int | None:
    """The rung that is claimed and was not replayed, or missed in one replay of which two of three have to decide."""
    rung = _claim_or_recorded(found, ladder)
    while rung >= 0:
        held = _held(one, ladder[rung])
        if not held or undecided(held):
            return rung
        if mostly(held):
            return None
        rung -= 1
    return None


def mostly(held: Sequence[bool]) -> bool:
    """More than half: one slow replay of three decides nothing."""
    return 2 * sum(held) > len(held)


def undecided(held: Sequence[bool]) -> bool:
    """One replay missed, which may be a slow moment of the machine: two of three decide."""
    return held.count(False) == 1 and held.count(True) <= 1


def _claim_or_recorded(found: Estimate, ladder: Sequence[float]) -> int:
    rung = claim(found, ladder)
    recorded = min(range(len(ladder)), key=lambda index: abs(math.log(ladder[index])))
    return recorded if rung < recorded and found.mean >= math.log(ladder[recorded]) else rung


def _held(one: Candidate, scale: float) -> list[bool]:
    """Whether the replays at this time scale held."""
    return [value <= 0 for at, value in one.replays if at == scale]


def _rung(ln_scale: float, ladder: Sequence[float]) -> int:
    """The highest rung at or below."""
    return max((rung for rung, scale in enumerate(ladder) if math.log(scale) <= ln_scale + 1e-9), default=0)
