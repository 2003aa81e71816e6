"""A sequential test of a share: may requests still be as often good as they would have to be?

An e-process by universal inference (Wasserman, Ramdas, Balakrishnan, PNAS 117 (2020)): the likelihood of what was seen
under a mixture of all two-state Markov chains (Krichevsky-Trofimov), over its largest likelihood under any chain of the
hypothesis. Its expectation is at most 1 whenever one looks (Ville), so that looking often costs nothing. Wald's SPRT,
corrected by (1 + r) / (1 - r) for a correlation r that has to be guessed, would promise less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

ERROR_RATE = 0.05
"""Chance of rejecting a share that is at least the floor, however often one looks."""
MAX_CORRELATION = 0.8
"""For which sequences ERROR_RATE holds: independent ones, and stationary first-order Markov chains whose neighbours
correlate by at most this much."""
_SHARES, _CORRELATIONS = 48, 33


def evidence_below(outcomes: Sequence[bool], floor: float) -> float:
    """The e-value against "the share of True is at least `floor`"; reject at 1 / ERROR_RATE and above.

    outcomes: in the order of what makes neighbours alike (arrival), without gaps. floor: in (0, 1).
    """
    assert 0 < floor < 1, floor
    if not outcomes:
        return 1.0
    counts = np.zeros((2, 2))
    for before, after in zip(outcomes, outcomes[1:], strict=False):
        counts[int(before), int(after)] += 1
    mixture = math.log(0.5) + sum(float(betaln(row[0] + 0.5, row[1] + 0.5) - betaln(0.5, 0.5)) for row in counts)
    start, steps = _chains(floor)
    likeliest = float((start[int(outcomes[0])] + np.tensordot(counts, steps, 2)).max())
    return math.exp(min(mixture - likeliest, 700.0))


@lru_cache(maxsize=16)
def _chains(floor: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-probabilities over a grid of the hypothesis' chains (shares x correlations): of the first outcome, shape
    [2, grid], and of an outcome after another, [2, 2, grid]; index 1 is True."""
    share, correlation = (
        axis.ravel()
        for axis in np.meshgrid(np.linspace(floor, 1 - 1e-6, _SHARES), np.linspace(0.0, MAX_CORRELATION, _CORRELATIONS))
    )
    start = np.log(np.stack([1 - share, share]))
    changes = 1 - correlation
    steps = np.array(
        [
            [1 - share * changes, share * changes],
            [(1 - share) * changes, 1 - (1 - share) * changes],
        ]
    )
    return start, np.log(steps)
