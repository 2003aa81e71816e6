"""From logits to tokens: temperature, top-k, top-p, and random numbers that depend on request and position alone."""

from __future__ import annotations

from collections.abc import Sequence as Items
from enum import IntEnum

import torch
from torch import Tensor

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

    Order as in vLLM: temperature, then top-k, then top-p. A greedy row is one-hot at its argmax.
    """
    greedy = torch.tensor([p.greedy for p in params], device=logits.device)
    temperature = torch.tensor([1.0 if p.greedy else p.temperature for p in params], device=logits.device).unsqueeze(1)
    scaled = logits / temperature
    if any(p.top_k or p.top_p < 1 for p in params):
        scaled = _filter(scaled, params)
    probs = scaled.softmax(-1)
    one_hot = torch.zeros_like(probs).scatter_(1, logits.argmax(-1, keepdim=True), 1.0)
    return torch.where(greedy.unsqueeze(1), one_hot, probs)


def _filter(logits: Tensor, params: Items[SamplingParams]) -> Tensor:
    vocab = logits.shape[-1]
    ordered, index = logits.sort(-1, descending=True)
    k = torch.tensor([min(p.top_k, vocab) or vocab for p in params], device=logits.device).unsqueeze(1)
    top_p = torch.tensor([p.top_p for p in params], device=logits.device).unsqueeze(1)
    rank = torch.arange(vocab, device=logits.device)
    ordered = ordered.masked_fill(rank >= k, float("-inf"))
    probs = ordered.softmax(-1)
    # A token stays when the mass before it is below top_p, so the most likely one always does.
    ordered = ordered.masked_fill(probs.cumsum(-1) - probs >= top_p, float("-inf"))
    return torch.empty_like(logits).scatter_(1, index, ordered)


def draw(probs: Tensor, u: float) -> int:
    """Inverse-CDF sample of one distribution [vocab] (need not sum to 1) at u in [0, 1)."""
    cumulative = probs.double().cumsum(0)
    token = int(torch.searchsorted(cumulative, u * cumulative[-1], right=True))
    return min(token, probs.shape[0] - 1)
