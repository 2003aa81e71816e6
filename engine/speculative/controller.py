"""How many tokens are worth guessing: measured acceptance and measured step times decide (Liu et al. 2024, TurboSpec).

No tensors and no clock: whoever steps the engine says what a step took.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

WARMUP_STEPS = 3
"""Steps timed at full depth, and then at none, in each batch bucket before anything is decided."""
PROBE_INTERVAL = 64
"""Steps of a bucket at the chosen depth before a neighbouring depth is tried again."""
PROBE_STEPS = 2
"""Timed steps of a probe. Steps in which the draft's cache catches up are not timed and do not count,"""
PROBE_PATIENCE = 32
"""but after so many steps of either kind it ends."""
MARGIN = 1.02
"""A depth is left for another one only when that promises this many times its tokens a second."""
SECONDS_WEIGHT = 0.2
"""Of a new observation in the moving average of a step's seconds."""
OUTLIER = 4.0
"""A longer step than this many times its average counts as this many times."""
ACCEPTANCE_WINDOW = 32.0
"""Verified sequences after which an observation of acceptance weighs 1/e."""
PRIOR, PRIOR_WEIGHT = 0.5, 1.0
"""Acceptance before anything is known, and how many observations that counts for."""


class Acceptance:
    """How likely guess i stands when those before it did, for positions 1..depth.

    A moving average over verified sequences. A position without observations is taken to be like the one before it.
    What was seen before steps without speculation weighs less as soon as something new is seen, and not earlier.
    """

    def __init__(self, depth: int) -> None:
        self._offered = [0.0] * depth
        self._accepted = [0.0] * depth
        self._idle_steps = 0

    def observe_step(self, outcomes: Iterable[tuple[int, int]]) -> None:
        """The verified sequences of a step: of `guessed` tokens the first `accepted` stood."""
        self._idle_steps += 1
        for guessed, accepted in outcomes:
            self._observe(guessed, accepted, (1 - 1 / ACCEPTANCE_WINDOW) ** max(self._idle_steps, 1))
            self._idle_steps = 0

    def _observe(self, guessed: int, accepted: int, keep: float) -> None:
        for position in range(len(self._offered)):
            stood, known = position < accepted, position < min(accepted + 1, guessed)
            self._offered[position] = self._offered[position] * keep + known
            self._accepted[position] = self._accepted[position] * keep + (known and stood)

    def expected(self) -> list[float]:
        """Guesses expected to stand at depths 0, 1, …, max."""
        rate, stands, totals = PRIOR, 1.0, [0.0]
        for offered, accepted in zip(self._offered, self._accepted, strict=True):
            rate = (accepted + PRIOR_WEIGHT * rate) / (offered + PRIOR_WEIGHT)
            stands *= rate
            totals.append(totals[-1] + stands)
        return totals


@dataclass(slots=True)
class _Bucket:
    """Decoding batches of like size. seconds: moving average of a step's time, and timed: how often it was, by depth.

    since_probe: steps. probe_left: timed steps of the probe under way, at depth + direction; probe_patience: any steps.
    """

    depth: int
    seconds: dict[int, float] = field(default_factory=dict)
    timed: dict[int, int] = field(default_factory=dict)
    since_probe: int = 0
    probe_left: int = 0
    probe_patience: int = 0
    direction: int = 1

    def observe(self, depth: int, seconds: float) -> None:
        count = self.timed.get(depth, 0)
        average = self.seconds.get(depth, seconds)
        # While warming up a plain mean, so that one odd first step does not stay.
        weight = max(1 / (count + 1), SECONDS_WEIGHT)
        self.seconds[depth] = average + weight * (min(seconds, OUTLIER * average) - average)
        self.timed[depth] = count + 1

    def predicted(self, depth: int) -> float:
        """Seconds of a step: measured, or on the line between the nearest measured depths. Needs 0 and the largest."""
        if depth in self.seconds:
            return self.seconds[depth]
        low = max(d for d in self.seconds if d < depth)
        high = min(d for d in self.seconds if d > depth)
        share = (depth - low) / (high - low)
        return (1 - share) * self.seconds[low] + share * self.seconds[high]


class SpeculationController:
    """Chooses the depth of each step, 0..max_depth: the one with the most expected tokens a second.

    Acceptance is one estimate for all batches; step times are kept by power-of-two bucket of decoding sequences.
    min_acceptance: a depth of whose guesses a smaller share is expected to stand is not used. Every PROBE_INTERVAL
    steps of a bucket a neighbouring depth is tried for PROBE_STEPS, so a change is noticed, also from depth 0.
    """

    def __init__(self, max_depth: int, min_acceptance: float) -> None:
        self.max_depth = max_depth
        self.fallbacks = 0
        self._min_acceptance = min_acceptance
        self._acceptance = Acceptance(max_depth)
        self._buckets: dict[int, _Bucket] = {}

    def depth(self, num_decodes: int) -> int:
        """Guesses for each of `num_decodes` sequences in the next step."""
        bucket = self._bucket(num_decodes)
        for depth in (self.max_depth, 0):
            if bucket.timed.get(depth, 0) < WARMUP_STEPS:
                return depth
        if bucket.probe_left and bucket.probe_patience:
            bucket.probe_patience -= 1
            return bucket.depth + bucket.direction
        bucket.probe_left = 0
        self._decide(bucket)
        bucket.since_probe += 1
        if bucket.since_probe >= PROBE_INTERVAL:
            self._start_probe(bucket)
        return bucket.depth

    def observe(self, num_decodes: int, depth: int, outcomes: Iterable[tuple[int, int]], seconds: float | None) -> None:
        """After a step. outcomes: (guessed, accepted) of each verified sequence. seconds: what the step took; None when
        it did more than decode, so that its time says nothing about others."""
        self._acceptance.observe_step(outcomes)
        if seconds is not None:
            bucket = self._bucket(num_decodes)
            bucket.observe(depth, seconds)
            if bucket.probe_left and depth == bucket.depth + bucket.direction:
                bucket.probe_left -= 1

    def _bucket(self, num_decodes: int) -> _Bucket:
        return self._buckets.setdefault(num_decodes.bit_length(), _Bucket(self.max_depth))

    def _decide(self, bucket: _Bucket) -> None:
        expected = self._acceptance.expected()
        allowed = [d for d, stand in enumerate(expected) if not d or stand >= d * self._min_acceptance]
        rates = {d: (1 + expected[d]) / bucket.predicted(d) for d in allowed}
        best = max(rates, key=rates.__getitem__)
        if bucket.depth in rates and rates[best] < MARGIN * rates[bucket.depth]:
            return
        self.fallbacks += bucket.depth > 0 == best
        bucket.depth = best

    def _start_probe(self, bucket: _Bucket) -> None:
        bucket.since_probe = 0
        bucket.probe_left = PROBE_STEPS
        bucket.probe_patience = PROBE_PATIENCE
        bucket.direction = -bucket.direction
        if not 0 <= bucket.depth + bucket.direction <= self.max_depth:
            bucket.direction = -bucket.direction
