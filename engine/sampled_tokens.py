"""Tokens that stay on the device: one step samples them, the next one reads them, and the host gets them later."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from engine.layers.attention import AttentionInput, Span
from engine.layers.sampler import Stream, uniform
from engine.layers.upload import upload
from engine.runner import RowResult
from engine.scheduler import ScheduledSequence
from engine.sequence import UNKNOWN, SamplingParams, Sequence

Sampler = Callable[[Tensor, Items[SamplingParams], Items[float]], Tensor]
NO_TOKEN = RowResult()


class SampledTokens:
    """Those of the last step that sampled here, and whose they are."""

    def __init__(self) -> None:
        self._tokens = torch.empty(0, dtype=torch.int64)
        self._rows: dict[Sequence, int] = {}

    def fill(self, batch: AttentionInput, spans: list[Span]) -> None:
        """Put them where the sequences of the next step end in UNKNOWN."""
        rows, sources = [], []
        for span, first in zip(spans, batch.first_rows, strict=True):
            if span.tokens[-1] == UNKNOWN:
                rows.append(first + len(span.tokens) - 1)
                sources.append(self._rows[span.sequence])
        if rows:
            ids, device = batch.token_ids, batch.token_ids.device
            ids.index_copy_(0, upload(rows, device), self._tokens[upload(sources, device)].to(ids.dtype))

    def sample(self, step: list[ScheduledSequence], logits: Tensor, sampler: Sampler) -> TokensToCome:
        """A token for each row of logits [N, vocab], one row for each item of the step that samples."""
        sequences = [item.sequence for item in step if item.samples]
        self._tokens = draw_tokens(sequences, logits, sampler)
        self._rows = {sequence: row for row, sequence in enumerate(sequences)}
        return TokensToCome([item.samples for item in step], self._tokens)


def draw_tokens(sequences: list[Sequence], logits: Tensor, sampler: Sampler) -> Tensor:
    """The next token of each sequence, [N] int64, from its row of logits [N, vocab]. Nothing waits for the device."""
    if not sequences:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    tokens = logits.max(-1).indices
    sampled = [row for row, sequence in enumerate(sequences) if not sequence.params.greedy]
    if sampled:
        params = [sequences[row].params for row in sampled]
        numbers = [uniform(sequences[row].seed, sequences[row].num_tokens, Stream.SAMPLE) for row in sampled]
        index = upload(sampled, logits.device)
        tokens.index_copy_(0, index, sampler(logits[index], params, numbers))
    return tokens


class TokensToCome:
    """A step's tokens on their way to the host (engine.runner.Pending). samples: which items of the step have one."""

    def __init__(self, samples: list[bool], tokens: Tensor) -> None:
        self._samples = samples
        # From a GPU into pinned memory, behind the step that computes them; the event says when they are there.
        self._tokens = tokens.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if tokens.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def collect(self) -> list[RowResult]:
        """See Pending."""
        if self._arrived is not None:
            self._arrived.synchronize()
        tokens = iter(self._tokens.tolist())
        return [RowResult((next(tokens),)) if samples else NO_TOKEN for samples in self._samples]
