"""How long a step takes: seconds = sum of coefficient x count, fitted to steps that were timed (docs/simulator.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from scipy.optimize import nnls

from engine.config import EngineConfig
from engine.kv_cache import narrower
from engine.scheduler import ScheduledSequence
from engine.speculative.catching_up import DraftSpan

COUNTS = (
    "steps", "rows", "sequences", "groups", "context", "pairs", "draft_passes", "draft_rows", "draft_context",
)  # fmt: skip
"""rows: tokens computed, guesses included. groups: kinds of sequences that attend as one batch (layers.attention:
equal rows, pages within a factor of two). context: tokens in the pages that the sequences see. pairs: rows x context,
by sequence. draft_*: the same of the draft model, over all its passes."""
NO_DRAFTS = (0, 0, 0)
HUBER = 0.1
"""Relative error beyond which a timed step weighs less: one slow moment of the machine must not bend the fit."""
REWEIGHTINGS = 5
Counts = tuple[float, ...]


class StepModel(msgspec.Struct, frozen=True):
    """coefficients: seconds for one of each of COUNTS, none negative. error: mean relative error over the fitted steps.
    samples: how many those were."""

    coefficients: Counts
    error: float = 0.0
    samples: int = 0

    def __post_init__(self) -> None:
        if len(self.coefficients) != len(COUNTS) or min(self.coefficients) < 0:
            raise ValueError(f"coefficients: expected {len(COUNTS)} numbers of at least 0, given {self.coefficients}")

    def seconds(self, counts: Counts) -> float:
        return sum(c * n for c, n in zip(self.coefficients, counts, strict=True))


class StepCounter:
    """Counts what the steps of one configuration compute. model_window: tokens that the model itself sees, or None."""

    def __init__(self, config: EngineConfig, model_window: int | None) -> None:
        window, sinks = narrower(config.kv_window, config.kv_sink_tokens, model_window)
        self._size = config.block_size
        self._most_pages: int | None = None
        if window is not None:
            self._most_pages = -(-sinks // self._size) + -(-window // self._size) + 1
            self._most_pages += config.kv_heavy_tokens // self._size

    def target(
        self, step: list[ScheduledSequence], guessed: Sequence[int] | None
    ) -> tuple[int, int, int, int, int, int]:
        """The first six of COUNTS. guessed: verified guesses of each item; None: no item has any."""
        rows = context = pairs = 0
        groups = set()
        for index, item in enumerate(step):
            own = item.num_tokens if guessed is None else item.num_tokens + guessed[index]
            pages = self._pages(item, own)
            groups.add((own, pages.bit_length()))
            rows += own
            context += pages
            pairs += own * pages
        return 1, rows, len(step), len(groups), context * self._size, pairs * self._size

    def draft(
        self, step: list[ScheduledSequence], spans: list[DraftSpan], guessed: Sequence[int]
    ) -> tuple[int, int, int]:
        """The last three of COUNTS."""
        if not spans:
            return NO_DRAFTS
        passes, rows, context = 1, 0, 0
        for span in spans:
            guesses = guessed[span.item]
            passes = max(passes, guesses)
            rows += span.end - span.start + max(guesses - 1, 0)
            context += self._pages(step[span.item], 1) * max(guesses, 1)
        return passes, rows, context * self._size

    def _pages(self, item: ScheduledSequence, rows: int) -> int:
        """Pages that the rows of an item see together."""
        held = len(item.sequence.block_table)
        return held if self._most_pages is None else min(held, self._most_pages + rows // self._size)


def precision(config: EngineConfig) -> str:
    """What the coefficients depend on: one model each."""
    return f"{config.weight_dtype}/{config.kv_cache_dtype}"


def fit(counts: Iterable[Counts], seconds: Iterable[float]) -> StepModel:
    """Non-negative least squares on relative errors under Huber's loss. Raises ValueError for fewer than two steps."""
    table, times = np.array(list(counts), float), np.array(list(seconds), float)
    if len(times) < 2:
        raise ValueError(f"fit: expected at least two timed steps, given {len(times)}")
    scales = np.maximum(table.max(0), 1.0)
    relative = table / scales / times[:, None]
    weights = np.ones(len(times))
    for _ in range(REWEIGHTINGS):
        solution, _ = nnls(relative * weights[:, None], weights)
        errors = np.abs(relative @ solution - 1)
        weights = 1 / np.sqrt(np.maximum(errors / HUBER, 1))
    return StepModel(tuple((solution / scales).tolist()), float(errors.mean()), len(times))
