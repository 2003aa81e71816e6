"""A small model that guesses what the target will say (Leviathan et al. 2023).

The draft model keeps its own keys and values in pages of the same numbers (one block table for both models).
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.layers.attention import Span
from engine.layers.penalties import Row, penalise
from engine.layers.sampler import Stream, draw, probabilities, uniform
from engine.layers.upload import upload
from engine.paged_model import PagedModel
from engine.scheduler import ScheduledSequence
from engine.speculative.catching_up import draft_spans
from engine.speculative.proposal import Proposal


class Drafter:
    """Runs the draft model. paged: with the window and sinks of the target."""

    def __init__(self, paged: PagedModel) -> None:
        self.paged = paged

    def propose(self, step: list[ScheduledSequence], config: EngineConfig) -> list[Proposal]:
        """Guesses for each scheduled sequence, num_drafts of them where it wants any and the draft cache is whole."""
        proposals = [Proposal(computed=item.sequence.num_draft_computed) for item in step]
        found = draft_spans(step, config)
        if found:
            sequences = [step[span.item].sequence for span in found]
            spans = [Span(s, f.start, s.tokens(f.start, f.end)) for s, f in zip(sequences, found, strict=True)]
            logits = self._last_logits(spans)
            for span in found:
                proposals[span.item].computed = span.end
            ready = [row for row, span in enumerate(found) if span.ready]
            members = [found[row].item for row in ready]
            if len(ready) < len(found):
                logits = logits[upload(ready, logits.device, torch.int64)]  # perhaps of none
            self._guess([step[i] for i in members], [proposals[i] for i in members], logits)
        return proposals

    def _guess(self, step: list[ScheduledSequence], proposals: list[Proposal], logits: Tensor) -> None:
        """logits: [len(step), vocab], after each sequence's own tokens."""
        pairs = list(zip(step, proposals, strict=True))
        while pairs:
            add_guesses(pairs, logits)
            pairs = [(item, proposal) for item, proposal in pairs if len(proposal.tokens) < item.num_drafts]
            if pairs:
                logits = self._last_logits(
                    [Span(i.sequence, _end(i) + len(p.tokens) - 1, p.tokens[-1:]) for i, p in pairs]
                )

    def _last_logits(self, spans: list[Span]) -> Tensor:
        prepared = self.paged.prepare(spans)
        last = [first + len(span.tokens) - 1 for first, span in zip(prepared.batch.first_rows, spans, strict=True)]
        return self.paged.logits(prepared.run(), last)


def _end(item: ScheduledSequence) -> int:
    return item.start + item.num_tokens


def add_guesses(pairs: list[tuple[ScheduledSequence, Proposal]], logits: Tensor) -> None:
    """One more token for each proposal, chosen as the target would: the same penalties, temperature and filters."""
    sequences = [item.sequence for item, _ in pairs]
    logits = penalise(logits, [Row(item.sequence, proposal.tokens) for item, proposal in pairs])
    tokens: list[int] = logits.argmax(-1).tolist()
    sampled = [row for row, sequence in enumerate(sequences) if not sequence.params.greedy]
    if sampled:
        probs = probabilities(logits[sampled], [sequences[row].params for row in sampled])
        positions = [_end(pairs[row][0]) + len(pairs[row][1].tokens) for row in sampled]
        numbers = [uniform(sequences[row].seed, p, Stream.DRAFT) for row, p in zip(sampled, positions, strict=True)]
        for row, token, q in zip(sampled, draw(probs, numbers).tolist(), probs, strict=True):
            tokens[row] = token
            pairs[row][1].probs.append(q)
    for (_, proposal), token in zip(pairs, tokens, strict=True):
        proposal.tokens.append(token)
