"""Guesses without a draft model: the sequence's own earlier tokens."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.scheduler import ScheduledSequence
from engine.speculative.ngram import NgramIndex
from engine.speculative.proposal import Proposal


class PromptLookup:
    """The drafter of speculative_method ngram. Needs no cache; a proposal is certain (one-hot) and may be empty."""

    def propose(self, step: list[ScheduledSequence], config: EngineConfig) -> list[Proposal]:
        """Guesses for each scheduled sequence, num_drafts of them where one of its n-grams occurred before."""
        proposals = []
        for item in step:
            sequence = item.sequence
            if sequence.params.forced is not None:
                proposals.append(Proposal())
                continue
            if sequence.ngrams is None:
                sequence.ngrams = NgramIndex(config.prompt_lookup_min, config.prompt_lookup_max)
            # Prompts are indexed chunk by chunk, so no step pays for a long one at once.
            sequence.ngrams.extend(sequence.tokens(len(sequence.ngrams), item.start + item.num_tokens))
            proposals.append(Proposal(sequence.ngrams.continuation(item.num_drafts) if item.num_drafts else []))
        return proposals
