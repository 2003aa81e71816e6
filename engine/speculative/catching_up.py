"""Which tokens the draft model's cache lacks and computes in a step. Bookkeeping only, no tensors."""

from __future__ import annotations

from typing import NamedTuple

from engine.config import EngineConfig
from engine.scheduler import USUAL_DRAFT_LAG, ScheduledSequence


class DraftSpan(NamedTuple):
    """Positions [start, end) of one item of a step, by its index. ready: it may guess: nothing up to its newest token
    is lacking then."""

    item: int
    start: int
    end: int
    ready: bool


def draft_spans(step: list[ScheduledSequence], config: EngineConfig) -> list[DraftSpan]:
    """What the first pass computes for those that want guesses: prompts, and what was generated without speculation.

    Sequences that are far behind make up as many tokens a step together as a step may prefill of one prompt, and do not
    guess until they are there.
    """
    most = min(config.prefill_chunk_size or config.max_num_batched_tokens, config.max_num_batched_tokens)
    spans = []
    for index, item in enumerate(step):
        if item.num_drafts and item.sequence.params.forced is None:
            start, end = _missing(item, most, config.block_size)
            most -= end - start if end - start > USUAL_DRAFT_LAG else 0
            if end > start:
                spans.append(DraftSpan(index, start, end, end == item.start + item.num_tokens))
    return spans


def _missing(item: ScheduledSequence, most: int, block_size: int) -> tuple[int, int]:
    """The next positions that the draft cache lacks, at most `most` where it lacks many. Evicted pages are left out:
    what no query of the target sees, the draft can do without."""
    sequence, end = item.sequence, item.start + item.num_tokens
    start = sequence.num_draft_computed
    table = sequence.block_table
    while table[start // block_size] is None:
        start = (start // block_size + 1) * block_size
    if end - start > USUAL_DRAFT_LAG:
        end = min(end, start + most)
        stop = next((i for i in range(start // block_size, -(-end // block_size)) if table[i] is None), len(table))
        end = min(end, stop * block_size)
    return start, end
