"""Which guesses stand, and the token after them: exact for greedy requests, and in distribution for sampled ones."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import NamedTuple

import torch
from torch import Tensor

from engine.layers.penalties import Row, penalise
from engine.layers.sampler import Stream, draw, probabilities, sample, uniform
from engine.scheduler import ScheduledSequence
from engine.sequence import SamplingParams, Sequence
from engine.speculative.proposal import Proposal


def verify(
    step: list[ScheduledSequence],
    proposals: list[Proposal],
    logits: Tensor,
    counts: list[int],
    synthetic: float | None = None,
    sampler: Callable[[Tensor, Items[SamplingParams], Items[float]], Tensor] = sample,
) -> list[list[int]]:
    """New tokens of each scheduled sequence: the guesses that stand, then one of the target's.

    logits: [sum(counts), vocab], counts[i] rows of sequence i, which are one more than its guesses, or none.
    synthetic: let each guess stand with this probability, whatever the target says (EngineConfig.synthetic_acceptance).
    sampler: draws where nobody guessed.
    """
    if any(item.sequence.params.penalised for item in step):
        items = zip(step, proposals, counts, strict=True)
        logits = penalise(logits, [Row(i.sequence, p.tokens[:k]) for i, p, count in items for k in range(count)])
    top: list[int] = logits.max(-1).indices.tolist() if logits.numel() else []
    tokens: list[list[int]] = []
    sampled: list[_Sampled] = []
    first = 0
    for index, (item, proposal, count) in enumerate(zip(step, proposals, counts, strict=True)):
        params = item.sequence.params
        if params.forced is not None:
            done = len(item.sequence.output)
            tokens.append(list(params.forced[done : done + count]))
        elif params.greedy or not count:
            targets = top[first : first + count]
            if synthetic is None:
                tokens.append(verify_greedy(proposal.tokens, targets))
            else:
                kept = _lucky(item.sequence, proposal, synthetic)
                tokens.append(proposal.tokens[:kept] + targets[kept : kept + 1])
        else:
            tokens.append([])
            sampled.append(_Sampled(index, item.sequence, proposal, range(first, first + count)))
        first += count
    if sampled:
        params_of_rows = [s.sequence.params for s in sampled for _ in s.rows]
        wanted = logits[[row for s in sampled for row in s.rows]]
        if any(s.proposal.tokens for s in sampled):
            probs = probabilities(wanted, params_of_rows)
            drawn = verify_sampled([s.sequence for s in sampled], [s.proposal for s in sampled], probs, synthetic)
        else:
            numbers = [uniform(s.sequence.seed, s.sequence.num_tokens, Stream.SAMPLE) for s in sampled]
            drawn = [[token] for token in sampler(wanted, params_of_rows, numbers).tolist()]
        for asked, found in zip(sampled, drawn, strict=True):
            tokens[asked.member] = found
    return tokens


class _Sampled(NamedTuple):
    member: int
    sequence: Sequence
    proposal: Proposal
    rows: range


def verify_greedy(drafts: list[int], targets: list[int]) -> list[int]:
    """Guesses that agree with the target's argmax, then the target's own next token. len(targets) = len(drafts) + 1,
    or 0 where no token is wanted."""
    accepted = 0
    while accepted < len(drafts) and drafts[accepted] == targets[accepted]:
        accepted += 1
    return targets[: accepted + 1]


def verify_sampled(
    sequences: Items[Sequence], proposals: Items[Proposal], target_probs: Tensor, synthetic: float | None = None
) -> list[list[int]]:
    """Rejection sampling (Leviathan et al. 2023, algorithm 1): the tokens follow the target's distribution whatever the
    draft proposes. target_probs: [rows, vocab], for each sequence one row more than it has guesses."""
    if synthetic is None:
        accepted = _accepted(sequences, proposals, target_probs)
    else:
        accepted = [_lucky(s, p, synthetic) for s, p in zip(sequences, proposals, strict=True)]
    last, numbers = [], []
    first = 0
    for sequence, proposal, kept in zip(sequences, proposals, accepted, strict=True):
        last.append(first + kept)
        stream = Stream.RESIDUAL if kept < len(proposal.tokens) else Stream.SAMPLE
        numbers.append(uniform(sequence.seed, sequence.num_tokens + kept, stream))
        first += len(proposal.tokens) + 1
    probs = target_probs[last]
    drawn = draw(_residual(probs, proposals, accepted) if synthetic is None else probs, numbers).tolist()
    return [p.tokens[:kept] + [token] for p, kept, token in zip(proposals, accepted, drawn, strict=True)]


def _lucky(sequence: Sequence, proposal: Proposal, rate: float) -> int:
    """How many guesses stand when each does with probability `rate`."""
    kept = 0
    while kept < len(proposal.tokens) and uniform(sequence.seed, sequence.num_tokens + kept, Stream.ACCEPT) < rate:
        kept += 1
    return kept


def _accepted(sequences: Items[Sequence], proposals: Items[Proposal], target_probs: Tensor) -> list[int]:
    """How many guesses of each sequence stand: guess i does with probability min(1, p_i / q_i)."""
    tokens = [token for proposal in proposals for token in [*proposal.tokens, 0]]
    p: list[float] = target_probs[list(range(len(tokens))), tokens].tolist()
    draft_probs = [row for proposal in proposals for row in proposal.probs]
    drafted = [token for proposal in proposals if proposal.probs for token in proposal.tokens]
    q = iter(torch.stack(draft_probs)[list(range(len(drafted))), drafted].tolist() if drafted else [])
    accepted = []
    first = 0
    for sequence, proposal in zip(sequences, proposals, strict=True):
        chances = [next(q) if proposal.probs else 1.0 for _ in proposal.tokens]
        kept = 0
        while kept < len(chances):
            u = uniform(sequence.seed, sequence.num_tokens + kept, Stream.ACCEPT)
            if u * chances[kept] >= p[first + kept]:
                break
            kept += 1
        accepted.append(kept)
        first += len(chances) + 1
    return accepted


def _residual(probs: Tensor, proposals: Items[Proposal], accepted: list[int]) -> Tensor:
    """max(p - q, 0) in the rows of `probs` whose guess fell, p in the others. Rows need not sum to 1."""
    fallen = [(row, p, kept) for row, (p, kept) in enumerate(zip(proposals, accepted, strict=True)) if p.tokens[kept:]]
    certain = [(row, p.tokens[kept]) for row, p, kept in fallen if not p.probs]
    drafted = [(row, p.probs[kept]) for row, p, kept in fallen if p.probs]
    residual = probs.clone()
    if certain:
        rows, tokens = zip(*certain, strict=True)
        residual[list(rows), list(tokens)] = 0.0
    if drafted:
        rows, draft_probs = zip(*drafted, strict=True)
        residual[list(rows)] -= torch.stack(draft_probs)
    residual.clamp_(min=0.0)
    # Where rounding alone let a guess fall, nothing is left of p - q.
    return torch.where(residual.sum(-1, keepdim=True) > 0, residual, probs)
