"""Token deadlines: does an answer flow as fast as it is read? (formulas: docs/metrics.md)

Source: Etalon (Agrawal et al., "Metron", arXiv 2407.07000; etalon/metrics/metric_utils.py). A gap between tokens says
nothing of the lead that came before it, and a server that holds tokens back improves its gaps; a deadline has neither
fault.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MOST_STRETCH = 3.0
"""ln of the largest factor by which deadlines are stretched; beyond, it does not matter how far an answer is off."""
HALVINGS = 20
FLUID_SHARE = 0.99
"""Share of the offered requests that a fluid token rate must hold for."""
FLUIDITY = 0.9
"""Share of an answer's deadlines that must be met for it to count as fluid at some rate."""
FASTEST_GAP = 1e-6
"""Seconds between tokens below which no rate is looked for."""


def fluidity(gaps: Sequence[float], first: float, following: float) -> float:
    """Share of the token deadlines that were met, 0 to 1.

    gaps: seconds to the first token, then between tokens. first, following: seconds allowed for the first token and
    for each one after it. A token's deadline is the last one's plus its allowance, so time in hand is kept. After a
    late token deadlines start anew from it, and it counts as one missed deadline for each `following` that it was late
    by: a stall is not one late token.
    """
    met, missed, slack = 0, 0, 0.0
    for index, gap in enumerate(gaps):
        allowed = (first if index == 0 else following) + slack
        if gap <= allowed:
            met, slack = met + 1, allowed - gap
        else:
            missed, slack = missed + 1 + int((gap - allowed) / following), 0.0
    return met / (met + missed) if gaps else 0.0


def deadline_stretch(gaps: Sequence[float], first: float, following: float, share: float) -> float:
    """The natural logarithm of the smallest factor on all deadlines at which `share` of them are met, within
    [-MOST_STRETCH, MOST_STRETCH]; <= 0 exactly when fluidity() >= share."""

    def fluid(stretch: float) -> bool:
        factor = math.exp(stretch)
        return fluidity(gaps, first * factor, following * factor) >= share

    # exp(0.0) is exactly 1, so the sign is that of the deadlines as they are.
    met, missed = (0.0, -MOST_STRETCH) if fluid(0.0) else (MOST_STRETCH, 0.0)
    if met == MOST_STRETCH and not fluid(met):
        return MOST_STRETCH
    for _ in range(HALVINGS):
        middle = (met + missed) / 2
        met, missed = (middle, missed) if fluid(middle) else (met, middle)
    return met


def smallest_token_gap(gaps: Sequence[float]) -> float:
    """The smallest allowance per token, in seconds (to 1 %), at which FLUIDITY of the deadlines after the first token
    are met; the first token's lead does not count. 0 for an answer that came at once."""
    tokens = gaps[1:]
    met, missed = max(tokens, default=0.0), FASTEST_GAP
    if met <= missed:
        return 0.0
    while met > 1.01 * missed:
        middle = math.sqrt(met * missed)
        met, missed = (middle, missed) if fluidity(tokens, middle, middle) >= FLUIDITY else (met, middle)
    return met
