"""From logits to tokens: temperature and filters, and random numbers that depend on request and position alone."""

from __future__ import annotations

from collections.abc import Sequence as Items
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from engine.layers.upload import upload
from engine.sequence import SamplingParams

_MASK = 2**64 - 1


class Stream(IntEnum):
    """Independent random numbers for the same request and position."""

    SAMPLE = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3


def uniform(seed: int, position: int, stream: Stream) -> float:
    """A number in [0, 1), a function of its arguments only (SplitMix64, Steele et al. 2014), so that the order of
    requests in a batch never changes a sample."""
    x = seed & _MASK
    for word in (position, int(stream)):
        x = _mix((x + (word + 1) * 0x9E3779B97F4A7C15) & _MASK)
    return (x >> 11) * 2.0**-53


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def probabilities(logits: Tensor, params: Items[SamplingParams]) -> Tensor:
    """The distribution each row is sampled from, [N, vocab] float32; params run parallel to the rows.

    Order as in vLLM (v1/sample/sampler.py), after the penalties: temperature, min-p, top-k, top-p of what top-k left.
    A greedy row is one-hot at its argmax.
    """
    greedy = upload([p.greedy for p in params], logits.device)
    temperature = upload([1.0 if p.greedy else p.temperature for p in params], logits.device).unsqueeze(1)
    scaled = logits / temperature
    if any(p.min_p for p in params):
        # p >= min_p * max(p), in logits; log(0) = -inf keeps everything.
        least = upload([p.min_p for p in params], logits.device).log().unsqueeze(1)
        scaled = scaled.masked_fill(scaled < scaled.amax(-1, keepdim=True) + least, float("-inf"))
    if filtered := [row for row, p in enumerate(params) if p.top_k or p.top_p < 1]:
        index = upload(filtered, logits.device)
        scaled = scaled.index_copy(0, index, _top_k_top_p(scaled[index], [params[row] for row in filtered]))
    probs = scaled.softmax(-1)
    if not any(p.greedy for p in params):
        return probs
    one_hot = torch.zeros_like(probs).scatter_(1, logits.argmax(-1, keepdim=True), 1.0)
    return torch.where(greedy.unsqueeze(1), one_hot, probs)


def _top_k_top_p(logits: Tensor, params: Items[SamplingParams]) -> Tensor:
    vocab = logits.shape[-1]
    ordered, index = torch.sort(logits, dim=-1, descending=True, stable=True)  # Of equal tokens the first stay.
    k = upload([min(p.top_k, vocab) or vocab for p in params], logits.device).unsqueeze(1)
    top_p = upload([p.top_p for p in params], logits.device).unsqueeze(1)
    rank = torch.arange(vocab, device=logits.device)
    ordered = ordered.masked_fill(rank >= k, float("-inf"))
    probs = ordered.softmax(-1)
    # A token stays when the mass before it is below top_p, so the most likely one always does.
    ordered = ordered.masked_fill(probs.cumsum(-1) - probs >= top_p, float("-inf"))
    return torch.empty_like(logits).scatter_(1, index, ordered)


def draw(probs: Tensor, u: Items[float]) -> Tensor:
    """Inverse-CDF sample, [N] int64, of each distribution in [N, vocab] (rows need not sum to 1) at its u in [0, 1)."""
    return draw_at(probs, upload(u, probs.device, torch.float64))


def draw_at(probs: Tensor, u: Tensor) -> Tensor:
    """The same for numbers that are on the device, [N] float64."""
    cumulative = probs.double().cumsum(-1)
    total = cumulative[:, -1:]
    at = u.unsqueeze(1) * total
    return torch.searchsorted(cumulative, at, right=True).clamp_(max=probs.shape[1] - 1)[:, 0]


def sample(logits: Tensor, params: Items[SamplingParams], u: Items[float]) -> Tensor:
    """A token, [N] int64, for each row of logits [N, vocab] by its parameters and its u in [0, 1)."""
    return draw(probabilities(logits, params), u)


class LogProbabilities(NamedTuple):
    """Of N chosen tokens [N], and of the likeliest ones at their positions: their ids and theirs, each [N, num_top],
    from the likeliest down."""

    chosen: Tensor
    top_ids: Tensor
    top: Tensor


def log_probabilities(logits: Tensor, tokens: Tensor, num_top: int) -> LogProbabilities:
    """Of each row of `logits` [N, vocab] and its chosen token [N], by the model's own distribution: before penalties
    and temperature, as in vLLM (logprobs_mode raw_logprobs)."""
    logprobs = logits.log_softmax(-1)
    top, top_ids = logprobs.topk(min(num_top, logprobs.shape[1]), -1)
    return LogProbabilities(logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1), top_ids, top)
