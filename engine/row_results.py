"""What a step found, on its way from the device to the host, which waits for it once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from engine.layers.attention import AttentionInput
from engine.layers.download import Download
from engine.layers.listing import list_tokens
from engine.layers.sampler import LogProbabilities, log_probabilities
from engine.layers.upload import upload
from engine.runner import RowResult
from engine.scheduler import ScheduledSequence
from engine.speculative.proposal import Guesses
from engine.speculative.verification import Choice

NO_TOKEN = RowResult()


class TokensToCome:
    """One token of each item that samples (engine.runner.Pending). tokens: theirs, [N]."""

    def __init__(self, step: list[ScheduledSequence], tokens: Tensor) -> None:
        # By the time they are there, the sequences may have moved on.
        self._samples = [item.samples for item in step]
        self._download = Download(tokens)

    def collect(self) -> list[RowResult]:
        """See Pending."""
        [found] = self._download.wait()
        tokens = iter(found.tolist())
        return [RowResult((next(tokens),)) if samples else NO_TOKEN for samples in self._samples]


class ResultsToCome:
    """All there may be (engine.runner.Pending): guesses that stand, forced tokens, log-probabilities, listings.

    counts: rows of `logits` [N, vocab] of each item. weighed: where it is wanted what each page drew.
    """

    def __init__(
        self,
        step: list[ScheduledSequence],
        guesses: Guesses,
        logits: Tensor,
        counts: list[int],
        choice: Choice,
        weighed: AttentionInput | None,
    ) -> None:
        self._items = [_Item.of(*row) for row in zip(step, guesses.tokens, guesses.computed, counts, strict=True)]
        self._weighed = weighed
        packed = torch.cat((choice.accepted.unsqueeze(1), choice.tokens), 1)
        listings = _listings(step, self._items, logits)
        self._listed = list(listings)
        asked = _log_probabilities(step, self._items, logits, choice)
        self._download = Download(packed, *[tensor for pair in listings.values() for tensor in pair], *asked)

    def collect(self) -> list[RowResult]:
        """See Pending."""
        packed, *more = self._download.wait()
        rows = iter(packed.tolist())
        results = [item.result(rows) for item in self._items]
        for index in self._listed:
            ids, values = (more.pop(0).numpy().tobytes() for _ in range(2))
            results[index] = msgspec.structs.replace(results[index], listed_ids=ids, listed_logprobs=values)
        if more:
            told = zip(*(tensor.tolist() for tensor in more), strict=True)
            results = [item.tell(result, told) for item, result in zip(self._items, results, strict=True)]
        if self._weighed is not None:
            masses = zip(results, self._weighed.page_masses(), strict=True)
            results = [msgspec.structs.replace(result, page_masses=drew) for result, drew in masses]
        return results


class _Item(NamedTuple):
    """One of the step, as it was launched. rows: of logits. forced: its tokens, where they are. guesses: how many are
    verified. computed: see Guesses. asks: for log-probabilities."""

    rows: int
    forced: tuple[int, ...] | None
    guesses: int
    computed: int
    asks: bool

    @classmethod
    def of(cls, item: ScheduledSequence, guesses: list[int], computed: int, rows: int) -> _Item:
        sequence = item.sequence
        forced, done = sequence.params.forced, len(sequence.output)
        if forced is not None:
            forced = forced[done : done + rows]
        return cls(rows, forced, len(guesses), computed, sequence.params.logprobs)

    def result(self, chosen: Iterator[list[int]]) -> RowResult:
        """chosen: of each that chooses, how many guesses stand, and tokens."""
        if self.forced is not None:
            tokens = self.forced
        elif self.rows:
            stand, *found = next(chosen)
            tokens = tuple(found[: stand + 1])
        else:
            tokens = ()
        # The last guess was never an input of the draft model, so its cache ends one short of a full acceptance.
        more = min(len(tokens), self.guesses) - 1 if self.guesses and self.computed else 0
        return RowResult(tokens, num_drafted=self.guesses, num_draft_computed=self.computed + more)

    def tell(self, result: RowResult, told: Iterator[tuple[float, list[int], list[float]]]) -> RowResult:
        """told: log-probabilities of each row that asks: the token's, and the likeliest ones' ids and theirs."""
        if not (self.asks and self.rows):
            return result
        found = [next(told) for _ in range(self.rows)][: len(result.tokens)]
        logprobs = tuple(logprob for logprob, _, _ in found)
        tops = tuple(tuple(zip(ids, values, strict=True)) for _, ids, values in found)
        return msgspec.structs.replace(result, logprobs=logprobs, top_logprobs=tops)


def _log_probabilities(
    step: list[ScheduledSequence], items: list[_Item], logits: Tensor, choice: Choice
) -> LogProbabilities | tuple[()]:
    """Of every row of those that ask, behind guesses that fell too: the host knows none of them yet."""
    chosen = choice.tokens
    begins = {member.item: place * chosen.shape[1] for place, member in enumerate(choice.members)}
    forced = [token for item in items if item.asks for token in item.forced or ()]
    rows, places, forced_place, first = list[int](), list[int](), chosen.numel(), 0
    for index, item in enumerate(items):
        if item.asks:
            rows += range(first, first + item.rows)
            begin = forced_place if item.forced is not None else begins.get(index, 0)
            places += range(begin, begin + item.rows)
            forced_place += len(item.forced or ())
        first += item.rows
    if not rows:
        return ()
    device = logits.device
    tokens = torch.cat((chosen.flatten(), upload(forced, device, torch.int64)))[upload(places, device)]
    # The likeliest token is always told: it shows where a forced one differs.
    most = max([1, *(item.sequence.params.top_logprobs for item in step if item.sequence.params.logprobs)])
    return log_probabilities(logits[upload(rows, device)], tokens, most)


def _listings(step: list[ScheduledSequence], items: list[_Item], logits: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Of those that ask for listings, by their index."""
    found = {}
    first = 0
    for index, (scheduled, item) in enumerate(zip(step, items, strict=True)):
        if item.rows and (wanted := scheduled.sequence.params.listed) is not None:
            rows = logits[first : first + item.rows]
            found[index] = list_tokens(rows, wanted, len(scheduled.sequence.output))
        first += item.rows
    return found
