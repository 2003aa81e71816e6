"""A small model that guesses what the target will say (Leviathan et al. 2023).

The draft model keeps its own keys and values in pages of the same numbers (one block table for both models). Each guess
is an input of the next pass, and of the target's; none of them visits the host on its way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.cuda_graphs import Prepared
from engine.layers.attention import Span
from engine.layers.penalties import Row, penalise
from engine.layers.sampler import Stream, draw, probabilities, uniform
from engine.layers.upload import upload
from engine.paged_model import PagedModel
from engine.scheduler import ScheduledSequence
from engine.sequence import UNKNOWN
from engine.speculative.catching_up import draft_spans
from engine.speculative.proposal import Guesses


class Drafter:
    """Runs the draft model. paged: with the window and sinks of the target."""

    def __init__(self, paged: PagedModel) -> None:
        self.paged = paged

    def propose(self, step: list[ScheduledSequence], config: EngineConfig) -> Guesses:
        """Guesses for each scheduled sequence, num_drafts of them where it wants any and the draft cache is whole."""
        computed = [item.sequence.num_draft_computed for item in step]
        found = draft_spans(step, config)
        draft = Draft(step, [span.item for span in found if span.ready], self.paged.device)
        if found:
            sequences = [step[span.item].sequence for span in found]
            spans = [Span(s, f.start, s.tokens(f.start, f.end)) for s, f in zip(sequences, found, strict=True)]
            prepared = self.paged.prepare(spans)
            logits = self._last_logits(prepared, spans)
            for span in found:
                computed[span.item] = span.end
            if len(draft.members) < len(found):
                ready = [row for row, span in enumerate(found) if span.ready]
                logits = logits[upload(ready, logits.device, torch.int64)]  # perhaps of none
            self._guess(draft, logits)
        return draft.guesses(computed)

    def _guess(self, draft: Draft, logits: Tensor) -> None:
        """logits: [len(draft.members), vocab], after each sequence's own tokens."""
        while draft.members:
            draft.add(logits)
            if draft.members:
                spans = draft.spans()
                prepared = self.paged.prepare(spans)
                draft.fill(prepared)
                logits = self._last_logits(prepared, spans)

    def _last_logits(self, prepared: Prepared, spans: list[Span]) -> Tensor:
        last = [first + len(span.tokens) - 1 for first, span in zip(prepared.batch.first_rows, spans, strict=True)]
        return self.paged.logits(prepared.run(), last)


class Draft:
    """The guesses of a step while they grow, one for each member at a time.

    step: its sequences; members: by index, those that want another guess. depth: guesses that members have so far.
    """

    _newest: Tensor
    """Of each member."""

    def __init__(self, step: list[ScheduledSequence], members: list[int], device: torch.device) -> None:
        self.members = members
        self.depth = 0
        self._step = step
        self._wanted = [0] * len(step)
        for index in members:
            self._wanted[index] = step[index].num_drafts
        self._index = upload(members, device, torch.int64)
        self._ids = torch.zeros(len(step), max(self._wanted), dtype=torch.int64, device=device)
        sampled = [index for index in members if not step[index].sequence.params.greedy]
        self._prob_rows = {index: row for row, index in enumerate(sampled)}
        self._probs: Tensor | None = None

    def add(self, logits: Tensor) -> None:
        """One more token for each member, chosen as the target would from logits [len(members), vocab]: the same
        penalties, temperature and filters."""
        device, sequences = logits.device, [self._step[index].sequence for index in self.members]
        if any(sequence.params.penalised for sequence in sequences):
            rows = zip(sequences, self.members, strict=True)
            logits = penalise(logits, [Row(sequence, self._ids[index, : self.depth]) for sequence, index in rows])
        tokens = logits.argmax(-1)
        if sampled := [row for row, sequence in enumerate(sequences) if not sequence.params.greedy]:
            index = upload(sampled, device)
            probs = probabilities(logits[index], [sequences[row].params for row in sampled])
            tokens.index_copy_(0, index, draw(probs, [self._number(self.members[row]) for row in sampled]))
            self._keep(probs, [self.members[row] for row in sampled])
        self._ids[:, self.depth].index_copy_(0, self._index, tokens)
        self.depth += 1
        self._newest, before = tokens, len(self.members)
        self.members = [index for index in self.members if self._wanted[index] > self.depth]
        if len(self.members) < before:
            self._index = upload(self.members, device, torch.int64)
            self._newest = self._ids[self._index, self.depth - 1]

    def _number(self, index: int) -> float:
        item = self._step[index]
        return uniform(item.sequence.seed, _end(item) + self.depth, Stream.DRAFT)

    def _keep(self, probs: Tensor, members: list[int]) -> None:
        if self._probs is None:
            self._probs = probs.new_empty(len(self._prob_rows), self._ids.shape[1], probs.shape[1])
        rows = upload([self._prob_rows[index] for index in members], probs.device)
        self._probs[:, self.depth].index_copy_(0, rows, probs)

    def spans(self) -> list[Span]:
        """Where the draft model reads the newest guess of each member."""
        items = [self._step[index] for index in self.members]
        return [Span(item.sequence, _end(item) + self.depth - 1, [UNKNOWN]) for item in items]

    def fill(self, prepared: Prepared) -> None:
        """Put the newest guesses into those spans."""
        prepared.batch.put(prepared.batch.first_rows, self._newest)

    def guesses(self, computed: list[int]) -> Guesses:
        """All of them; computed: see Guesses."""
        return Guesses([[UNKNOWN] * count for count in self._wanted], self._ids, computed, self._probs, self._prob_rows)


def _end(item: ScheduledSequence) -> int:
    return item.start + item.num_tokens
