"""Sampled requests under speculation follow the model's distribution, whoever guesses; a synthetic rate does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from test_llm_engine import collect, prompts, run
from test_penalties import by_the_book
from test_sampler import verified
from transformers import (
    LlamaForCausalLM,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.config import EngineConfig
from engine.model_runner import load_engine
from engine.scheduler import ScheduledSequence
from engine.sequence import SamplingParams, Sequence
from engine.speculative.draft_model import Draft
from engine.speculative.prompt_lookup import known

VOCAB = 6
SAMPLES = 6_000
PROMPT = [0, 1, 1]


def distribution(logits: torch.Tensor, prompt: list[int], output: list[int], params: SamplingParams) -> torch.Tensor:
    """What transformers would sample from: its processors in vLLM's order."""
    scores = by_the_book(logits, prompt, output, params).unsqueeze(0)
    scores = TemperatureLogitsWarper(params.temperature)(None, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(None, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    return TopPLogitsWarper(params.top_p)(None, scores).softmax(-1)[0].double()


def two_tokens(draft: torch.Tensor | None, target: torch.Tensor, params: SamplingParams) -> Counter[tuple[int, ...]]:
    """The first two tokens of SAMPLES requests at depth 2; `target`, `draft`: logits of the first and later tokens."""
    sequences = [Sequence("a", tuple(PROMPT), params, 0, seed) for seed in range(SAMPLES)]
    while todo := [sequence for sequence in sequences if len(sequence.output) < 2]:
        step = [ScheduledSequence(s, s.num_tokens - 1, 1, 2, True) for s in todo]
        at = torch.tensor([len(s.output) for s in todo])
        if draft is None:  # certain guesses of a token that is neither likely nor impossible
            guesses = known([[2, 2] for _ in step], target.device)
        else:
            growing = Draft(step, list(range(len(step))), target.device)
            for ahead in range(2):
                growing.add(draft[(at + ahead).clamp(max=1)])
            guesses = growing.guesses([0] * len(step))
        rows = torch.stack([at, at + 1, at + 2], 1).clamp(max=1).flatten()
        for sequence, tokens in zip(todo, verified(todo, guesses, target[rows]), strict=True):
            sequence.append(tokens)
    return Counter(tuple(sequence.output[:2]) for sequence in sequences)


def assert_follows(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> None:
    total = counts.total()
    assert not set(counts) - {key for key, p in expected.items() if p > 0}, "a token that the filters forbid"
    # Cells too rare for the test's approximation are taken together.
    common = [key for key, p in expected.items() if p * total >= 5]
    observed = [counts[key] for key in common]
    wanted = [expected[key] * total for key in common]
    if total - sum(wanted) >= 5:
        observed.append(total - sum(observed))
        wanted.append(total - sum(wanted))
    assert chisquare(observed, wanted, sum_check=False).pvalue > 1e-3


def logits(seed: int) -> torch.Tensor:
    return torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(seed)) * 1.5


DRAFTS: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "a draft that is the target": lambda target: target,
    "a draft near the target": lambda target: target + 0.3 * logits(2),
    "a draft far from the target": lambda _: logits(3),
    "certain guesses": lambda _: None,
}


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS.keys())
@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"temperature": 1.0}, id="plain"),
        pytest.param({"temperature": 1.7, "top_k": 4}, id="top-k"),
        pytest.param({"temperature": 0.8, "top_p": 0.85}, id="top-p"),
        pytest.param({"temperature": 1.5, "min_p": 0.15}, id="min-p"),
        pytest.param(
            {"temperature": 1.2, "repetition_penalty": 1.6, "frequency_penalty": 1.5, "presence_penalty": 0.5},
            id="penalties",
        ),
        pytest.param(
            {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "min_p": 0.05, "frequency_penalty": 1.0}, id="everything"
        ),
    ],
)
def test_two_tokens_follow_the_target(
    draft: Callable[[torch.Tensor], torch.Tensor | None], params: dict[str, Any]
) -> None:
    target, sampling = logits(1), SamplingParams(max_tokens=9, **params)
    first = distribution(target[0], PROMPT, [], sampling)
    second = [distribution(target[1], PROMPT, [token], sampling) for token in range(VOCAB)]
    expected = {(a, b): float(first[a] * second[a][b]) for a, b in product(range(VOCAB), repeat=2)}
    assert_follows(two_tokens(draft(target), target, sampling), expected)


REQUESTS = 1_500


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="no speculation"),
        pytest.param({"num_speculative_tokens": 2}, id="draft model"),
        pytest.param({"num_speculative_tokens": 2, "speculative_method": "ngram", "prompt_lookup_min": 1}, id="ngram"),
    ],
)
def test_requests_to_the_engine_follow_the_model(settings: dict[str, Any], tiny_llama: Path, tiny_draft: Path) -> None:
    """Three tokens of three likely ones each, with penalties, against transformers' logits."""
    # The prompt ends as it began and bias makes its tokens likely, so that there is something to look up.
    bias = ((7, 12.0), (8, 11.0), (9, 13.0))
    penalties = {"frequency_penalty": 0.8, "repetition_penalty": 1.2}
    params = SamplingParams(max_tokens=3, temperature=1.5, top_k=3, logit_bias=bias, ignore_eos=True, **penalties)
    oracle = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    prompt = [7, 8, 9, 7, 8]
    expected: dict[tuple[int, ...], float] = {(): 1.0}
    for length in range(3):
        for output in [key for key in expected if len(key) == length]:
            chance = expected.pop(output)
            with torch.inference_mode():
                scores = oracle(torch.tensor([prompt + list(output)])).logits[0, -1]
            probs = distribution(scores, prompt, list(output), params)
            expected |= {(*output, token): chance * float(probs[token]) for token in probs.nonzero()[:, 0].tolist()}
    config = EngineConfig(model=str(tiny_llama), draft_model=str(tiny_draft), max_num_seqs=128, **settings)
    engine = load_engine(config)
    assert_follows(Counter(map(tuple, run(engine, params, [prompt] * REQUESTS))), expected)
    if settings:
        assert engine.stats().draft_tokens > REQUESTS / 2


@pytest.mark.parametrize("method", ["draft_model", "ngram"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_synthetic_acceptance_is_the_rate_asked_for(
    method: str, temperature: float, tiny_llama: Path, tiny_draft: Path
) -> None:
    config = EngineConfig(
        model=str(tiny_llama),
        draft_model=str(tiny_draft),
        num_speculative_tokens=3,
        speculative_method=method,
        prompt_lookup_min=1,
        synthetic_acceptance=0.7,
    )
    params = SamplingParams(max_tokens=150, temperature=temperature, ignore_eos=True, seed=None)
    requests = prompts() + [[7, 8] * 10]

    def tokens() -> list[list[int]]:
        return [
            [t for output in one for t in output.tokens] for one in collect(engine, [(p, params) for p in requests])
        ]

    engine = load_engine(config)
    first = tokens()
    stats = engine.stats()
    offered = [stats.drafts, *stats.accepted_tokens_per_pos[:2]]
    assert min(offered) > 50
    for chances, stood in zip(offered, stats.accepted_tokens_per_pos, strict=True):
        assert stood / chances == pytest.approx(0.7, abs=0.15)
    engine = load_engine(config)
    assert tokens() == first, "chance that depends on request and position alone"
    plain = load_engine(config.updated({"synthetic_acceptance": None}))
    assert run(plain, params, requests) != first


def test_synthetic_acceptance_is_announced(tiny_llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"speculative_method": "ngram", "num_speculative_tokens": 2}
    engine = load_engine(EngineConfig(model=str(tiny_llama), **settings))
    assert not caplog.records
    engine.reconfigure(engine.config.updated({"synthetic_acceptance": 0.5}))
    assert "synthetic_acceptance 0.5: guesses stand by chance" in caplog.text
