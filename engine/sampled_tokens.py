"""Tokens that stay on the device: one step samples them, the next one reads them, and the host gets them later."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from engine.layers.attention import AttentionInput, Span
from engine.layers.sampler import Stream, uniform
from engine.layers.upload import upload
from engine.sequence import UNKNOWN, SamplingParams, Sequence

Sampler = Callable[[Tensor, Items[SamplingParams], Items[float]], Tensor]


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
            batch.put(rows, self._tokens[upload(sources, self._tokens.device)])

    def keep(self, sequences: list[Sequence], tokens: Tensor) -> None:
        """The token of each of these sequences, [N] int64, for the next step."""
        self._tokens = tokens
        self._rows = {sequence: row for row, sequence in enumerate(sequences)}


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
