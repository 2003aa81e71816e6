"""Speculative decoding: a draft model proposes, the target verifies (Leviathan et al. 2023, algorithm 1).

The draft model keeps its own keys and values in pages of the same numbers (one block table for both models).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.kernels.reference import PagedTensor
from engine.layers.attention import Span, layout
from engine.layers.sampler import Stream, draw, probabilities, uniform
from engine.models.decoder import Decoder
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence


@dataclass(slots=True)
class Proposal:
    """Guesses for one sequence. probs: the draft distribution [vocab] behind each token; empty when greedy."""

    tokens: list[int] = field(default_factory=list)
    probs: list[Tensor] = field(default_factory=list)


class Drafter:
    """Runs the draft model. cache: its pages; window and sink_tokens as for the target."""

    def __init__(
        self,
        model: Decoder,
        cache: list[tuple[PagedTensor, PagedTensor]],
        block_size: int,
        window: int | None,
        sink_tokens: int,
    ) -> None:
        self.model = model
        self.cache = cache
        self._geometry = (block_size, window, sink_tokens, model.embedding.device)

    def propose(self, step: list[ScheduledSequence]) -> list[Proposal]:
        """Guesses for each scheduled sequence, num_drafts of them where it wants any.

        The first pass also computes what the draft cache lacks: prompt chunks, and the last guess of a step in which
        every guess was accepted.
        """
        proposals = [Proposal() for _ in step]
        members = [i for i, item in enumerate(step) if item.sequence.params.forced is None]
        spans = [_catch_up(step[i]) for i in members]
        while spans:
            logits = self._last_logits(spans)
            spans, previous, members = [], members, []
            for row, i in enumerate(previous):
                item, proposal = step[i], proposals[i]
                if len(proposal.tokens) < item.num_drafts:
                    end = item.start + item.num_tokens + len(proposal.tokens)
                    _guess(item.sequence, end, logits[row], proposal)
                if 0 < len(proposal.tokens) < item.num_drafts:
                    members.append(i)
                    spans.append(Span(item.sequence, end, proposal.tokens[-1:]))
        return proposals

    def _last_logits(self, spans: list[Span]) -> Tensor:
        batch = layout(spans, *self._geometry)
        hidden = self.model.forward(batch, self.cache)
        last = [first + len(span.tokens) - 1 for first, span in zip(batch.first_rows, spans, strict=True)]
        return self.model.logits(hidden[last])


def _catch_up(item: ScheduledSequence) -> Span:
    sequence = item.sequence
    end = item.start + item.num_tokens
    return Span(sequence, sequence.num_draft_computed, sequence.tokens(sequence.num_draft_computed, end))


def _guess(sequence: Sequence, position: int, logits: Tensor, proposal: Proposal) -> None:
    if sequence.params.greedy:
        proposal.tokens.append(int(logits.argmax()))
        return
    probs = probabilities(logits.unsqueeze(0), [sequence.params])[0]
    proposal.probs.append(probs)
    proposal.tokens.append(draw(probs, uniform(sequence.seed, position, Stream.DRAFT)))


def verify_greedy(drafts: list[int], targets: list[int]) -> list[int]:
    """Guesses that agree with the target's argmax, then the target's own next token. len(targets) = len(drafts) + 1."""
    accepted = 0
    while accepted < len(drafts) and drafts[accepted] == targets[accepted]:
        accepted += 1
    return targets[: accepted + 1]


def verify_sampled(sequence: Sequence, proposal: Proposal, target_probs: Tensor) -> list[int]:
    """Rejection sampling: the tokens returned follow the target's distribution whatever the draft proposes.

    target_probs: [len(proposal.tokens) + 1, vocab].
    """
    tokens: list[int] = []
    for index, (token, draft_probs) in enumerate(zip(proposal.tokens, proposal.probs, strict=True)):
        position = sequence.num_tokens + index
        p, q = float(target_probs[index, token]), float(draft_probs[token])
        if uniform(sequence.seed, position, Stream.ACCEPT) * q < p:
            tokens.append(token)
            continue
        residual = torch.clamp(target_probs[index] - draft_probs, min=0.0)
        tokens.append(draw(residual, uniform(sequence.seed, position, Stream.RESIDUAL)))
        return tokens
    position = sequence.num_tokens + len(tokens)
    tokens.append(draw(target_probs[-1], uniform(sequence.seed, position, Stream.SAMPLE)))
    return tokens
