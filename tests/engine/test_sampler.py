"""Sampling and rejection sampling against distributions and filters that nobody here wrote."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from engine.layers.sampler import Stream, draw, probabilities, uniform
from engine.sequence import SamplingParams, Sequence
from engine.speculative import Proposal, verify_greedy, verify_sampled

VOCAB = 12
SAMPLES = 20_000


def logits(seed: int, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.6), (0.8, 6, 0.8), (1.0, 1, 1.0), (1.0, 99, 0.05)],
)
def test_probabilities_equal_transformers(temperature: float, top_k: int, top_p: float) -> None:
    scores = logits(3)
    wanted = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        wanted = TopKLogitsWarper(min(top_k, VOCAB))(None, wanted)
    wanted = TopPLogitsWarper(top_p)(None, wanted).softmax(-1)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    assert torch.allclose(probabilities(scores, [params]), wanted, atol=1e-6)


def test_rows_of_a_batch_keep_their_own_parameters() -> None:
    scores = logits(4).repeat(3, 1)
    params = [SamplingParams(temperature=0), SamplingParams(temperature=1.0, top_k=2), SamplingParams(temperature=2.0)]
    rows = probabilities(scores, params)
    alone = torch.cat([probabilities(scores[:1], [p]) for p in params])
    assert torch.equal(rows, alone)
    assert rows[0].count_nonzero() == 1


@given(seed=st.integers(0, 2**63), position=st.integers(0, 10**6))
def test_uniform_is_a_function_in_the_unit_interval(seed: int, position: int) -> None:
    values = [uniform(seed, position, stream) for stream in Stream]
    assert all(0 <= v < 1 for v in values)
    assert len(set(values)) == len(values)
    assert values == [uniform(seed, position, stream) for stream in Stream]


def test_uniform_is_uniform_over_positions_and_over_seeds() -> None:
    for numbers in (
        [uniform(1, position, Stream.SAMPLE) for position in range(5_000)],
        [uniform(seed, 9, Stream.ACCEPT) for seed in range(5_000)],
    ):
        assert kstest(numbers, "uniform").pvalue > 1e-3


def test_draw_follows_the_distribution() -> None:
    probs = logits(5).softmax(-1)[0]
    counts = torch.bincount(
        torch.tensor([draw(probs, uniform(0, i, Stream.SAMPLE)) for i in range(SAMPLES)]), minlength=VOCAB
    )
    assert chisquare(counts.numpy(), (probs / probs.sum()).double().numpy() * SAMPLES, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("draft_seed", [6, 7, 8])
def test_rejection_sampling_keeps_the_target_distribution(draft_seed: int) -> None:
    """Leviathan et al. 2023, theorem 1: the first token follows p whatever q is."""
    p, q = logits(6).softmax(-1)[0], logits(draft_seed).softmax(-1)[0]
    after = logits(9).softmax(-1)[0]
    params = SamplingParams(temperature=1.0)
    first, second = torch.zeros(VOCAB), torch.zeros(VOCAB)
    for seed in range(SAMPLES):
        sequence = Sequence("a", (1, 2), params, 0, seed)
        guess = draw(q, uniform(seed, 2, Stream.DRAFT))
        tokens = verify_sampled(sequence, Proposal([guess], [q]), torch.stack([p, after]))
        first[tokens[0]] += 1
        if len(tokens) == 2:
            second[tokens[1]] += 1
    assert chisquare(first.numpy(), p.double().numpy() * SAMPLES, sum_check=False).pvalue > 1e-3
    accepted = float(second.sum())
    assert accepted / SAMPLES == pytest.approx(float(torch.minimum(p, q).sum()), abs=0.02)
    assert chisquare(second.numpy(), after.double().numpy() * accepted, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize(
    ("drafts", "targets", "tokens"),
    [
        pytest.param([], [5], [5], id="no guess: the target's token"),
        pytest.param([5, 6], [5, 6, 7], [5, 6, 7], id="all agree: one token more than guessed"),
        pytest.param([5, 9], [5, 6, 7], [5, 6], id="the second differs: the target's own token there"),
        pytest.param([9, 6], [5, 6, 7], [5], id="the first differs: later agreement counts for nothing"),
    ],
)
def test_greedy_verification(drafts: list[int], targets: list[int], tokens: list[int]) -> None:
    assert verify_greedy(drafts, targets) == tokens
