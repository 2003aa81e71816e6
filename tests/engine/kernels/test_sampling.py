"""Sampled tokens against the torch sampler's, row by row."""

from __future__ import annotations

import pytest
import torch
from paged import gaussian
from torch import Tensor

from engine.kernels import sampling
from engine.layers import sampler
from engine.sequence import SamplingParams

VOCAB = 200
CASES = {
    "greedy": SamplingParams(temperature=0.0),
    "all tokens": SamplingParams(temperature=1.0),
    "hot": SamplingParams(temperature=1.7),
    "top-k": SamplingParams(temperature=1.0, top_k=5),
    "top-k of one": SamplingParams(temperature=1.0, top_k=1),
    "more than there are": SamplingParams(temperature=1.0, top_k=1000),
    "top-p": SamplingParams(temperature=1.0, top_p=0.6),
    "so small a top-p that one token stays": SamplingParams(temperature=1.0, top_p=1e-6),
    "top-p of what top-k left": SamplingParams(temperature=0.8, top_k=9, top_p=0.7),
    "min-p": SamplingParams(temperature=1.0, min_p=0.2),
    "all filters": SamplingParams(temperature=1.2, top_k=20, top_p=0.9, min_p=0.05),
}


def rows(tied: bool) -> Tensor:
    logits = 2 * gaussian(len(CASES), VOCAB, seed=1)
    # Logits of a bfloat16 product come in steps, so that several tokens are equal.
    return (logits * 2).round() / 2 if tied else logits


@pytest.mark.parametrize(
    ("tied", "block"), [(False, 256), (True, 256), (True, 128)], ids=["distinct", "equal", "equal, in two blocks"]
)
def test_tokens_are_those_of_the_torch_sampler(tied: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BLOCK", block)
    logits, params = rows(tied), list(CASES.values())
    numbers = torch.rand(len(params), generator=torch.Generator().manual_seed(block), dtype=torch.float64).tolist()
    assert sampling.sample(logits, params, numbers).tolist() == sampler.sample(logits, params, numbers).tolist()


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval(u: float) -> None:
    logits, params = rows(True), [SamplingParams(temperature=1.0, top_k=7, top_p=0.9)] * 3
    pair = (sampling.sample(logits[:3], params, [u] * 3), sampler.sample(logits[:3], params, [u] * 3))
    assert pair[0].tolist() == pair[1].tolist()


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.full((1, VOCAB), float("-inf"))
    logits[0, 17] = 1.0
    params = [SamplingParams(temperature=1.0, top_k=5, top_p=0.9)]
    assert sampling.sample(logits, params, [0.99]).tolist() == [17]
