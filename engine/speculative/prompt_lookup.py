"""Guesses without a draft model: the sequence's own earlier tokens."""

from __future__ import annotations

import torch

from engine.config import EngineConfig
from engine.layers.upload import upload
from engine.scheduler import ScheduledSequence
from engine.speculative.ngram import NgramIndex
from engine.speculative.proposal import Guesses


class PromptLookup:
    """The drafter of speculative_method ngram. Needs no cache; guesses are certain (one-hot) and may be none."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def propose(self, step: list[ScheduledSequence], config: EngineConfig) -> Guesses:
        """Guesses for each scheduled sequence, num_drafts of them where one of its n-grams occurred before."""
        return known([_looked_up(item, config) for item in step], self._device)


def known(tokens: list[list[int]], device: torch.device) -> Guesses:
    """Certain guesses for each scheduled sequence."""
    width = max(map(len, tokens))
    padded = [[*found, *[0] * (width - len(found))] for found in tokens] if width else []
    ids = upload(padded, device, torch.int64).view(len(tokens), width)
    return Guesses(tokens, ids, [0] * len(tokens), None, {})


def _looked_up(item: ScheduledSequence, config: EngineConfig) -> list[int]:
    sequence = item.sequence
    if sequence.params.forced is not None:
        return []
    if sequence.ngrams is None:
        sequence.ngrams = NgramIndex(config.prompt_lookup_min, config.prompt_lookup_max)
    # Prompts are indexed chunk by chunk, so no step pays for a long one at once.
    sequence.ngrams.extend(sequence.tokens(len(sequence.ngrams), item.start + item.num_tokens))
    return sequence.ngrams.continuation(item.num_drafts) if item.num_drafts else []
