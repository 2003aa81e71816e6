"""A small model that guesses what the target will say (Leviathan et al. 2023).

The draft model keeps its own keys and values in pages of the same numbers (one block table for both models).
"""

from __future__ import annotations

from torch import Tensor

from engine.config import EngineConfig
from engine.kernels.reference import PagedTensor
from engine.layers.attention import Span
from engine.layers.penalties import Row, penalise
from engine.layers.sampler import Stream, draw, probabilities, uniform
from engine.models.decoder import Decoder
from engine.scheduler import USUAL_DRAFT_LAG, ScheduledSequence
from engine.speculative.proposal import Proposal


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
        self._block_size = block_size
        self._geometry = (block_size, window, sink_tokens, model.embedding.device)

    def propose(self, step: list[ScheduledSequence], config: EngineConfig) -> list[Proposal]:
        """Guesses for each scheduled sequence, num_drafts of them where it wants any and the draft cache is complete.

        The first pass computes what the cache lacks: prompts, and what was generated without speculation. Sequences
        that are far behind make up as many tokens a step together as a step may prefill of one prompt, and do not guess
        until they are there.
        """
        most = min(config.prefill_chunk_size or config.max_num_batched_tokens, config.max_num_batched_tokens)
        proposals = [Proposal(computed=item.sequence.num_draft_computed) for item in step]
        members, spans = [], []
        for index, item in enumerate(step):
            if item.num_drafts and item.sequence.params.forced is None:
                span = self._missing(item, most)
                most -= len(span.tokens) if len(span.tokens) > USUAL_DRAFT_LAG else 0
                if span.tokens:
                    members.append(index)
                    spans.append(span)
                    proposals[index].computed = span.end
        if spans:
            logits = self._last_logits(spans)
            ready = [row for row, (i, span) in enumerate(zip(members, spans, strict=True)) if span.end == _end(step[i])]
            members = [members[row] for row in ready]
            self._guess([step[i] for i in members], [proposals[i] for i in members], logits[ready])
        return proposals

    def _missing(self, item: ScheduledSequence, most: int) -> Span:
        """The next tokens that the draft cache lacks, at most `most` where it lacks many. Evicted pages are left out:
        what no query of the target sees, the draft can do without."""
        sequence, end = item.sequence, _end(item)
        start = sequence.num_draft_computed
        table, size = sequence.block_table, self._block_size
        while table[start // size] is None:
            start = (start // size + 1) * size
        if end - start > USUAL_DRAFT_LAG:
            end = min(end, start + most)
            stop = next((i for i in range(start // size, -(-end // size)) if table[i] is None), len(table))
            end = min(end, stop * size)
        return Span(sequence, start, sequence.tokens(start, end))

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
        batch = self.model.operations.layout(spans, *self._geometry)
        hidden = self.model.forward(batch, self.cache)
        last = [first + len(span.tokens) - 1 for first, span in zip(batch.first_rows, spans, strict=True)]
        return self.model.logits(hidden[last])


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
        for row, token, q in zip(sampled, draw(probs, numbers), probs, strict=True):
            tokens[row] = token
            pairs[row][1].probs.append(q)
    for (_, proposal), token in zip(pairs, tokens, strict=True):
        proposal.tokens.append(token)
