"""What a drafter hands to verification."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from engine.layers.attention import AttentionInput, Span
from engine.layers.upload import upload
from engine.sequence import UNKNOWN


class Guesses(NamedTuple):
    """Guesses for the S scheduled sequences of a step, K of one at most.

    tokens: of each sequence; UNKNOWN where the device alone knows them. ids: [S, K] int64 on the device, any token
    behind a sequence's own. probs: the draft distributions of the sampled sequences, [D, K, vocab], of which the one at
    index i of the step has row prob_rows[i]; None where guesses are certain (n-gram), which is a one-hot distribution.
    computed: positions of each sequence's own tokens that are in the draft model's cache.
    """

    tokens: list[list[int]]
    ids: Tensor
    computed: list[int]
    probs: Tensor | None
    prob_rows: dict[int, int]

    def fill(self, batch: AttentionInput, spans: list[Span]) -> None:
        """Put them where the spans of the step say UNKNOWN."""
        width = self.ids.shape[1]
        rows, sources = list[int](), list[int]()
        for index, (span, tokens, first) in enumerate(zip(spans, self.tokens, batch.first_rows, strict=True)):
            if tokens and tokens[0] == UNKNOWN:
                end = first + len(span.tokens)
                rows += range(end - len(tokens), end)
                sources += range(index * width, index * width + len(tokens))
        if rows:
            ids = self.ids.flatten()
            batch.put(rows, ids if len(sources) == len(ids) else ids[upload(sources, ids.device)])
