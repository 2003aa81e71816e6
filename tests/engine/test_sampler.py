"""Sampling and rejection sampling against distributions and filters that nobody here wrote."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from engine.layers.sampler import Stream, draw, probabilities, uniform
from engine.scheduler import ScheduledSequence
from engine.sequence import SamplingParams, Sequence
from engine.speculative.prompt_lookup import known
from engine.speculative.proposal import Guesses
from engine.speculative.verification import choosers, verify

VOCAB = 12
SAMPLES = 20_000


def logits(seed: int, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize(
    ("temperature", "min_p", "top_k", "top_p"),
    [
        (1.0, 0.0, 0, 1.0),
        (0.7, 0.0, 0, 1.0),
        (1.3, 0.0, 5, 1.0),
        (1.0, 0.0, 0, 0.6),
        (0.8, 0.0, 6, 0.8),
        (1.0, 0.0, 1, 1.0),
        (1.0, 0.0, 99, 0.05),
        (1.0, 0.2, 0, 1.0),
        (2.5, 0.5, 0, 1.0),
        (1.0, 1.0, 0, 1.0),
        (1.5, 0.05, 7, 0.9),
    ],
)
def test_probabilities_equal_transformers(temperature: float, min_p: float, top_k: int, top_p: float) -> None:
    scores = logits(3)
    wanted = TemperatureLogitsWarper(temperature)(None, scores)
    if min_p:
        wanted = MinPLogitsWarper(min_p)(None, wanted)
    if top_k:
        wanted = TopKLogitsWarper(min(top_k, VOCAB))(None, wanted)
    wanted = TopPLogitsWarper(top_p)(None, wanted).softmax(-1)
    params = SamplingParams(temperature=temperature, min_p=min_p, top_k=top_k, top_p=top_p)
    assert torch.allclose(probabilities(scores, [params]), wanted, atol=1e-6)


def test_rows_of_a_batch_keep_their_own_parameters() -> None:
    scores = logits(4).repeat(3, 1)
    params = [SamplingParams(), SamplingParams(temperature=1.0, top_k=2), SamplingParams(temperature=2.0, min_p=0.1)]
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
    drawn = draw(probs.expand(SAMPLES, -1), [uniform(0, i, Stream.SAMPLE) for i in range(SAMPLES)])
    counts = torch.bincount(drawn, minlength=VOCAB)
    assert chisquare(counts.numpy(), (probs / probs.sum()).double().numpy() * SAMPLES, sum_check=False).pvalue > 1e-3


def test_draw_never_takes_a_token_without_probability() -> None:
    probs = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]])
    assert [int(draw(probs, [u])) for u in (0.0, 0.299, 0.301, 1 - 2**-53)] == [1, 1, 3, 3]


def verified(sequences: list[Sequence], guesses: Guesses, target: torch.Tensor) -> list[list[int]]:
    """New tokens of each; target: logits, for each sequence one row more than it has guesses."""
    step = [
        ScheduledSequence(s, s.num_tokens - 1, 1, len(g), True) for s, g in zip(sequences, guesses.tokens, strict=True)
    ]
    choice = verify(choosers(step, [1 + len(tokens) for tokens in guesses.tokens]), guesses, target)
    return [tokens[: stand + 1] for tokens, stand in zip(choice.tokens.tolist(), choice.accepted.tolist(), strict=True)]


@pytest.mark.parametrize(
    "about", ["far", "equal", "near", "the certain guess of a rare token", "the certain guess of a likely token"]
)
def test_rejection_sampling_keeps_the_target_distribution(about: str) -> None:
    """Leviathan et al. 2023, theorem 1: the first token follows p whatever q is."""
    p, after = logits(6).softmax(-1)[0], logits(9).softmax(-1)[0]
    drafts = {"far": logits(7), "equal": logits(6), "near": logits(6) + 0.3 * logits(8)}
    certain = int(p.argmin() if "rare" in about else p.argmax())
    q = drafts[about].softmax(-1)[0] if about in drafts else torch.eye(VOCAB)[certain]
    sequences = [Sequence("a", (1, 2), SamplingParams(temperature=1.0), 0, seed) for seed in range(SAMPLES)]
    guesses = draw(q.expand(SAMPLES, -1), [uniform(seed, 2, Stream.DRAFT) for seed in range(SAMPLES)])
    proposed = known([[guess] for guess in guesses.tolist()], guesses.device)
    if about in drafts:
        proposed = proposed._replace(probs=q.expand(SAMPLES, 1, -1), prob_rows={row: row for row in range(SAMPLES)})
    found = verified(sequences, proposed, torch.stack([p, after]).log().repeat(SAMPLES, 1))
    first = torch.bincount(torch.tensor([tokens[0] for tokens in found]), minlength=VOCAB)
    second = torch.bincount(torch.tensor([tokens[1] for tokens in found if len(tokens) == 2]), minlength=VOCAB)
    assert chisquare(first.numpy(), p.double().numpy() * SAMPLES, sum_check=False).pvalue > 1e-3
    accepted = int(second.sum())
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
    sequence = Sequence("a", (1, 2), SamplingParams(), 0)
    target = torch.nn.functional.one_hot(torch.tensor(targets), VOCAB).float()
    assert verified([sequence], known([drafts], target.device), target) == [tokens]
