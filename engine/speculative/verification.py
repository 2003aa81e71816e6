"""Which guesses stand, and the token after them: exact for greedy requests, and in distribution for sampled ones.

All of it on the device: which random numbers will be needed is known only there, so all that may be are uploaded.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from engine.layers.penalties import Row, penalise
from engine.layers.sampler import Stream, draw_at, probabilities, sample, uniform
from engine.layers.upload import upload
from engine.sampled_tokens import Sampler, draw_tokens
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence
from engine.speculative.proposal import Guesses


class Chooser(NamedTuple):
    """A sequence that chooses tokens. item: its index in the step; guesses: how many it has; first: its first row of
    logits, of which there is one more."""

    item: int
    sequence: Sequence
    guesses: int
    first: int


class Choice(NamedTuple):
    """Of C choosers. tokens: [C, K + 1] int64, the guesses that stand and then one of the target's, again and again.
    accepted: [C] int64, guesses that stand."""

    members: list[Chooser]
    tokens: Tensor
    accepted: Tensor


def choosers(step: list[ScheduledSequence], counts: list[int]) -> list[Chooser]:
    """Those of a step, counts[i] rows of logits being of sequence i: all that want tokens and whose are not forced."""
    found = []
    first = 0
    for index, (item, count) in enumerate(zip(step, counts, strict=True)):
        if count and item.sequence.params.forced is None:
            found.append(Chooser(index, item.sequence, count - 1, first))
        first += count
    return found


def verify(
    members: list[Chooser],
    guesses: Guesses,
    logits: Tensor,
    synthetic: float | None = None,
    sampler: Sampler = sample,
) -> Choice:
    """New tokens of each chooser. Nothing waits for the device. logits: [N, vocab].

    synthetic: let each guess stand with this probability, whatever the target says (EngineConfig.synthetic_acceptance).
    sampler: draws where nobody guessed.
    """
    if any(member.sequence.params.penalised for member in members):
        logits = _penalise(members, guesses, logits)
    if not any(member.guesses for member in members):
        tokens = _unguessed(members, logits, sampler)
        return Choice(members, tokens.unsqueeze(1), torch.zeros_like(tokens))
    ids = guesses.ids
    if len(members) < len(ids):
        ids = ids[upload([member.item for member in members], logits.device)]
    stand, top = _greedy(members, ids, logits, synthetic)
    picked = [row for row, member in enumerate(members) if not member.sequence.params.greedy]
    if not picked:
        return _choice(members, ids, stand, top)
    index, sampled = upload(picked, logits.device), [members[row] for row in picked]
    if not any(member.guesses for member in sampled):
        top[:, 0].index_copy_(0, index, _unguessed(sampled, logits, sampler))
        return _choice(members, ids, stand, top)
    rejection = _Rejection(sampled, guesses, ids[index], logits)
    if synthetic is None:
        stand.index_copy_(0, index, rejection.stand())
    next_tokens = rejection.tokens(_accepted(stand[index]), exact=synthetic is None)
    # The same whatever the number of accepted guesses: it was drawn for that number.
    top.index_copy_(0, index, next_tokens.unsqueeze(1).expand(-1, top.shape[1]))
    return _choice(members, ids, stand, top)


def _penalise(members: list[Chooser], guesses: Guesses, logits: Tensor) -> Tensor:
    penalised = [member for member in members if member.sequence.params.penalised]
    places = [(member, k) for member in penalised for k in range(member.guesses + 1)]
    index = upload([member.first + k for member, k in places], logits.device)
    rows = [Row(member.sequence, guesses.ids[member.item, :k]) for member, k in places]
    return logits.index_copy(0, index, penalise(logits[index], rows))


def _unguessed(members: list[Chooser], logits: Tensor, sampler: Sampler) -> Tensor:
    """One token of each, [len(members)], where nobody guessed."""
    firsts = [member.first for member in members]
    rows = logits if len(firsts) == len(logits) else logits[upload(firsts, logits.device, torch.int64)]
    return draw_tokens([member.sequence for member in members], rows, sampler)


def _greedy(members: list[Chooser], ids: Tensor, logits: Tensor, synthetic: float | None) -> tuple[Tensor, Tensor]:
    """Which guesses stand, [C, K], and the target's likeliest token after each number of them, [C, K + 1].

    A guess stands that agrees with it or, where `synthetic` is given, by chance.
    """
    device, width = logits.device, ids.shape[1]
    top = logits.max(-1).indices
    if len(top) == len(members) * (width + 1) and all(member.guesses == width for member in members):
        top = top.view(-1, width + 1)
        if synthetic is None:
            return ids == top[:, :-1], top
    else:
        rows = [[member.first + min(k, member.guesses) for k in range(width + 1)] for member in members]
        top = top[upload(rows, device)]
    if synthetic is None:
        offered = upload([[k < member.guesses for k in range(width)] for member in members], device)
        return offered & (ids == top[:, :-1]), top
    numbers = _numbers(members, width, Stream.ACCEPT)
    lucky = [
        [k < m.guesses and u < synthetic for k, u in enumerate(row)] for m, row in zip(members, numbers, strict=True)
    ]
    return upload(lucky, device), top


def _numbers(members: list[Chooser], width: int, stream: Stream) -> list[list[float]]:
    """Random numbers at the positions of the guesses of each."""
    return [
        [uniform(m.sequence.seed, m.sequence.num_tokens + k, stream) if k < m.guesses else 0.0 for k in range(width)]
        for m in members
    ]


def _accepted(stand: Tensor) -> Tensor:
    """How many stand before the first that falls, [C], of [C, K]."""
    return stand.long().cumprod(1).sum(1)


def _choice(members: list[Chooser], ids: Tensor, stand: Tensor, after: Tensor) -> Choice:
    """after: the target's token after each number of guesses, [C, K + 1]."""
    accepted = _accepted(stand).unsqueeze(1)
    last = after.gather(1, accepted)
    kept = torch.arange(after.shape[1], device=ids.device) < accepted
    return Choice(members, torch.where(kept, torch.cat((ids, last), 1), last), accepted[:, 0])


class _Rejection:
    """Rejection sampling (Leviathan et al. 2023, algorithm 1) of D sampled sequences: the tokens follow the target's
    distribution whatever the draft proposes. ids: [D, K], their guesses; logits: [N, vocab], penalised."""

    def __init__(self, members: list[Chooser], guesses: Guesses, ids: Tensor, logits: Tensor) -> None:
        self._members, self._ids = members, ids
        self._width, self._device = ids.shape[1], logits.device
        rows = [member.first + k for member in members for k in range(member.guesses + 1)]
        params = [member.sequence.params for member in members for _ in range(member.guesses + 1)]
        self._probs = probabilities(logits[upload(rows, self._device)], params)
        ends = accumulate(member.guesses + 1 for member in members)
        self._firsts = [end - member.guesses - 1 for end, member in zip(ends, members, strict=True)]
        self._counts = upload([member.guesses for member in members], self._device)
        self._draft = guesses.probs
        self._draft_rows = upload([guesses.prob_rows.get(member.item, 0) for member in members], self._device)

    def stand(self) -> Tensor:
        """Which guesses stand, [D, K]: guess i does with probability min(1, p_i / q_i)."""
        places = zip(self._firsts, self._members, strict=True)
        rows = [[first + min(k, member.guesses) for k in range(self._width)] for first, member in places]
        p = self._probs[upload(rows, self._device), self._ids].double()
        u = upload(_numbers(self._members, self._width, Stream.ACCEPT), self._device, torch.float64)
        at = torch.arange(self._width, device=self._device)
        if self._draft is not None:
            u = u * self._draft[self._draft_rows.unsqueeze(1), at, self._ids].double()
        return (at < self._counts.unsqueeze(1)) & ~(u >= p)

    def tokens(self, accepted: Tensor, exact: bool) -> Tensor:
        """The token [D] after the guesses that stand, [D]. exact: a guess that fell did so by `stand`."""
        probs = self._probs[upload(self._firsts, self._device) + accepted]
        numbers = _numbers(self._members, self._width, Stream.RESIDUAL)
        for member, row in zip(self._members, numbers, strict=True):
            position = member.sequence.num_tokens + member.guesses
            row.insert(member.guesses, uniform(member.sequence.seed, position, Stream.SAMPLE))
        u = upload(numbers, self._device, torch.float64).gather(1, accepted.unsqueeze(1))[:, 0]
        return draw_at(self._residual(probs, accepted) if exact else probs, u)

    def _residual(self, probs: Tensor, accepted: Tensor) -> Tensor:
        """max(p - q, 0) in the rows of `probs` whose guess fell, p in the others. Rows need not sum to 1."""
        fallen = (accepted < self._counts).unsqueeze(1)
        at = accepted.clamp(max=self._width - 1)
        if self._draft is None:
            rest = probs.scatter(1, self._ids.gather(1, at.unsqueeze(1)), 0.0)
        else:
            rest = probs - self._draft[self._draft_rows, at]
        residual = torch.where(fallen, rest, probs).clamp_(min=0.0)
        # Where rounding alone let a guess fall, nothing is left of p - q.
        return torch.where(residual.sum(-1, keepdim=True) > 0, residual, probs)
