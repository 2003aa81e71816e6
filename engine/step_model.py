"""How long a step takes: seconds = sum of coefficient x count, fitted to steps that were timed (docs/simulator.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
OWN = ("steps", "rows", "context")
"""Coefficients that depend on how keys and values are stored."""
_OWN = tuple(name in OWN for name in COUNTS)
HUBER = 0.1
"""Relative error beyond which a timed step weighs less: one slow moment of the machine must not bend the fit."""
REWEIGHTINGS = 5
Counts = tuple[float, ...]
Sample = tuple[Counts, float]
"""What a step computed, and its seconds."""


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
    return f"{Path(config.model).name}/{config.weight_dtype}/{config.kv_cache_dtype}"


def fit(samples: Mapping[str, Sequence[Sample]]) -> dict[str, StepModel]:
    """A model of each precision, fitted together: OWN coefficients are each one's, the others are common to all.

    Non-negative least squares on relative errors under Huber's loss. Raises ValueError for fewer than two steps.
    """
    if sum(map(len, samples.values())) < 2:
        raise ValueError("fit: expected at least two timed steps")
    columns = {name: [index + len(COUNTS) * number * own for index, own in enumerate(_OWN)]
               for number, name in enumerate(samples)}  # fmt: skip
    rows = [(columns[name], counts, seconds) for name, timed in samples.items() for counts, seconds in timed]
    relative = np.zeros((len(rows), len(COUNTS) * len(samples)))
    for row, (places, counts, seconds) in enumerate(rows):
        relative[row, places] = np.array(counts) / seconds
    scales = np.maximum(relative.max(0), 1e-12)
    relative /= scales
    weights = np.ones(len(rows))
    for _ in range(REWEIGHTINGS):
        solution, _ = nnls(relative * weights[:, None], weights)
        errors = np.abs(relative @ solution - 1)
        weights = 1 / np.sqrt(np.maximum(errors / HUBER, 1))
    solution /= scales
    found, first = {}, 0
    for name, timed in samples.items():
        own = errors[first : first + len(timed)]
        first += len(timed)
        found[name] = StepModel(
            tuple(solution[columns[name]].tolist()), float(own.mean()) if len(own) else 0.0, len(own)
        )
    return found
