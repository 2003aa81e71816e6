"""What a drafter hands to verification."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class Proposal:
    """Guesses for one sequence. probs: the draft distribution [vocab] behind each token; empty when the guesses were
    certain (greedy, n-gram, forced), which is a one-hot distribution. computed: positions of the sequence's own tokens
    that are in the draft model's cache."""

    tokens: list[int] = field(default_factory=list)
    probs: list[Tensor] = field(default_factory=list)
    computed: int = 0
