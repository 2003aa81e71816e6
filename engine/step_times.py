"""How long a step takes, learned while steps run, and the prefill chunk that still ends in time.

The table is the last steps with their loads; the model on it is seconds = a + b rows + c context + d pairs with no
negative coefficient, least squares on relative errors, so that one slow step of the machine does not bend it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

SAMPLES = 128
"""Steps remembered of each kind, with and without prompt chunks."""
MIN_SAMPLES = 8
REFIT_STEPS = 8
COLD_CHUNK = 32
"""Prompt tokens a step beside decodes until MIN_SAMPLES steps with prompts and twice as many in all are known."""
MIN_CHUNK = 16
"""Prompt tokens a step when the decodes alone exceed the target: it is lost, prompts must not be."""
SCALES = (1.0, 64.0, 4096.0, 65536.0)


@dataclass(slots=True)
class StepLoad:
    """What a step computes. rows: tokens. context: tokens that decodes read. pairs: query-key pairs of chunks."""

    rows: int = 0
    context: int = 0
    pairs: int = 0

    def add_chunk(self, start: int, tokens: int) -> None:
        """A chunk of a prompt at positions [start, start + tokens)."""
        self.rows += tokens
        self.pairs += tokens * start + tokens * (tokens + 1) // 2

    def with_chunk(self, start: int, tokens: int) -> StepLoad:
        load = replace(self)
        load.add_chunk(start, tokens)
        return load


class StepTimes:
    """The steps of one configuration. Times in seconds."""

    def __init__(self) -> None:
        self._with_chunks: deque[tuple[float, ...]] = deque(maxlen=SAMPLES)
        self._without: deque[tuple[float, ...]] = deque(maxlen=SAMPLES)
        self._unfitted = 0
        self._coefficients: list[float] = []

    def record(self, load: StepLoad, seconds: float) -> None:
        if seconds > 0:
            steps = self._with_chunks if load.pairs else self._without
            steps.append((1.0, load.rows, load.context, load.pairs, seconds))
            self._unfitted += 1

    def chunk(self, load: StepLoad, start: int, limit: int, target: float) -> int:
        """Prompt tokens from position `start`, at most `limit`, that a step of `load` may take on within `target`.

        At least one in a step that has no chunk yet (MIN_CHUNK when the decodes alone take longer), so prompts go on.
        """
        if not self._is_warm():
            return 0 if load.pairs else min(limit, COLD_CHUNK)
        if self._unfitted >= REFIT_STEPS or not self._coefficients:
            self._fit()
        sizes = range(1, limit + 1)
        size = bisect_right(sizes, target, key=lambda tokens: self._predict(load.with_chunk(start, tokens)))
        if size or load.pairs:
            return size
        return min(limit, 1 if self._predict(load) <= target else MIN_CHUNK)

    def _is_warm(self) -> bool:
        chunks = len(self._with_chunks)
        return chunks >= MIN_SAMPLES and chunks + len(self._without) >= 2 * MIN_SAMPLES

    def _predict(self, load: StepLoad) -> float:
        a, b, c, d = self._coefficients
        return a + b * load.rows + c * load.context + d * load.pairs

    def _fit(self) -> None:
        table = np.array([*self._with_chunks, *self._without])
        # Relative errors: every equation is divided by the time it explains. Scales keep the columns alike.
        loads = table[:, :4] / np.array(SCALES) / table[:, 4:]
        used = list(range(4))
        while True:
            solution = np.linalg.lstsq(loads[:, used], np.ones(len(loads)))[0]
            if solution.min() >= 0:
                break
            del used[int(solution.argmin())]
        error = float(np.abs(loads[:, used] @ solution - 1).mean())
        self._coefficients = [0.0] * 4
        for index, value in zip(used, solution.tolist(), strict=True):
            # What the model misses on average is kept in hand.
            self._coefficients[index] = value / SCALES[index] * (1 + error)
        self._unfitted = 0
