"""What changes logits before a token is chosen: logit bias, then repetition, frequency and presence penalties.

Definitions and order as in vLLM's sampler: repetition (Keskar et al. 2019, CTRL) over prompt and output, the other two
(OpenAI's API) over the output. The row after k guesses counts those guesses as output.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.layers.upload import upload
from engine.sequence import SamplingParams, Sequence


class Row(NamedTuple):
    """A row of logits: the token that follows the sequence's tokens and then `guesses`, [k] int64 on the device."""

    sequence: Sequence
    guesses: Tensor


def penalise(logits: Tensor, rows: Items[Row]) -> Tensor:
    """`logits` [N, vocab] with bias and penalties of each row applied; the same tensor when no row has any."""
    picked = [index for index, row in enumerate(rows) if row.sequence.params.penalised]
    if not picked:
        return logits
    chosen = [rows[index] for index in picked]
    index = upload(picked, logits.device)
    return logits.index_copy(0, index, _penalised(logits[index], chosen))


def _penalised(logits: Tensor, rows: list[Row]) -> Tensor:
    params = [row.sequence.params for row in rows]
    _add_bias(logits, params)
    owners: dict[int, int] = {}
    owner_rows = [owners.setdefault(id(row.sequence), len(owners)) for row in rows]
    sequences = list({id(row.sequence): row.sequence for row in rows}.values())
    vocab, device = logits.shape[1], logits.device
    owner = upload(owner_rows, device)
    output = _counts([s.output for s in sequences], vocab, device)[owner]
    _count(output, torch.cat([row.guesses for row in rows]), [len(row.guesses) for row in rows])
    seen = (_counts([s.prompt for s in sequences], vocab, device)[owner] + output) > 0
    repetition = _column((p.repetition_penalty for p in params), device)
    logits = torch.where(seen, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
    logits -= _column((p.frequency_penalty for p in params), device) * output
    return logits - _column((p.presence_penalty for p in params), device) * (output > 0)


def _add_bias(logits: Tensor, params: list[SamplingParams]) -> None:
    """In place."""
    entries = [(row, token, bias) for row, p in enumerate(params) for token, bias in p.logit_bias]
    if entries:
        row, token, bias = (upload(column, logits.device) for column in zip(*entries, strict=True))
        logits.index_put_((row, token), bias.to(logits.dtype), accumulate=True)


def _counts(token_lists: Items[Items[int]], vocab: int, device: torch.device) -> Tensor:
    """How often each token is in each list, [len(token_lists), vocab]."""
    counts = torch.zeros(len(token_lists), vocab, dtype=torch.int64, device=device)
    tokens = upload(list(chain.from_iterable(token_lists)), device, torch.int64)
    _count(counts, tokens, [len(tokens) for tokens in token_lists])
    return counts


def _count(counts: Tensor, tokens: Tensor, lengths: list[int]) -> None:
    """Add one to counts [rows, vocab] for each of `tokens`, of which the first lengths[0] are of row 0, and so on."""
    first = np.repeat(np.arange(len(lengths)) * counts.shape[1], lengths)
    flat = upload(first, tokens.device) + tokens
    counts.view(-1).index_add_(0, flat, torch.ones_like(flat))


def _column(values: Iterable[float], device: torch.device) -> Tensor:
    return upload(list(values), device).unsqueeze(1)
