"""Penalties and logit bias against transformers' processors and OpenAI's formula, also under speculation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from test_llm_engine import OUTPUT, collect, prompts, run
from transformers import LlamaForCausalLM, RepetitionPenaltyLogitsProcessor

from engine.config import EngineConfig
from engine.layers.penalties import Row, penalise
from engine.model_runner import load_engine
from engine.sequence import SamplingParams, Sequence

VOCAB = 20
PENALISED = SamplingParams(
    max_tokens=OUTPUT,
    ignore_eos=True,
    repetition_penalty=1.3,
    presence_penalty=0.4,
    frequency_penalty=0.7,
    logit_bias=((9, 3.0), (40, -100.0)),
)


def by_the_book(logits: torch.Tensor, prompt: list[int], output: list[int], params: SamplingParams) -> torch.Tensor:
    """transformers' repetition penalty, and mu[j] - c[j] * alpha_frequency - (c[j] > 0) * alpha_presence (OpenAI)."""
    scores = logits.clone()
    for token, bias in params.logit_bias:
        scores[token] += bias
    ids = torch.tensor([prompt + output])
    scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores.unsqueeze(0))[0]
    for token, count in Counter(output).items():
        scores[token] -= count * params.frequency_penalty + params.presence_penalty
    return scores


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"repetition_penalty": 1.5}, id="repetition: prompt and output"),
        pytest.param({"repetition_penalty": 0.5}, id="repetition below 1 rewards"),
        pytest.param({"presence_penalty": 1.2}, id="presence: once, whatever the count"),
        pytest.param({"frequency_penalty": -0.8}, id="frequency: for each time"),
        pytest.param({"logit_bias": ((3, 5.0), (7, -100.0))}, id="logit bias"),
        pytest.param(
            {"repetition_penalty": 2.0, "presence_penalty": 1.0, "frequency_penalty": 1.0, "logit_bias": ((1, 1.0),)},
            id="all at once",
        ),
    ],
)
def test_rows_after_guesses_count_them_as_output(params: dict[str, Any]) -> None:
    prompt, output, guesses = [1, 2, 3, 3], [3, 5, 5], [7, 5]
    sequence = Sequence("a", tuple(prompt), SamplingParams(**params), 0)
    sequence.output.extend(output)
    plain = Sequence("b", (1, 2), SamplingParams(), 1)
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(2)) * 3
    drawn = torch.tensor(guesses)
    rows = [Row(plain, drawn[:0]), *(Row(sequence, drawn[:k]) for k in range(3)), Row(plain, torch.tensor([4]))]
    found = penalise(logits, rows)
    for row, (owner, drafts) in enumerate(rows):
        wanted = by_the_book(logits[row], list(owner.prompt), owner.output + drafts.tolist(), owner.params)
        assert torch.allclose(found[row], wanted, atol=1e-5)
    assert torch.equal(found[[0, 4]], logits[[0, 4]]), "others in the batch are untouched"


def test_plain_rows_are_not_even_copied() -> None:
    logits = torch.zeros(1, VOCAB)
    assert (
        penalise(logits, [Row(Sequence("b", (1, 2), SamplingParams(temperature=1.0), 1), torch.tensor([]))]) is logits
    )


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> list[list[int]]:
    """Greedy continuations under PENALISED, token by token from transformers' logits."""
    oracle = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    found = []
    for prompt in prompts():
        output: list[int] = []
        while len(output) < OUTPUT:
            with torch.inference_mode():
                logits = oracle(torch.tensor([prompt + output])).logits[0, -1]
            output.append(int(by_the_book(logits, prompt, output, PENALISED).argmax()))
        found.append(output)
    return found


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="one token a step"),
        pytest.param({"num_speculative_tokens": 4}, id="a draft that is mostly wrong"),
        pytest.param({"num_speculative_tokens": 3, "self_draft": True}, id="a draft that is always right"),
        pytest.param({"num_speculative_tokens": 3, "kv_cache_memory_bytes": 120_000}, id="preempted"),
    ],
)
def test_greedy_tokens_are_the_argmax_after_penalties(
    settings: dict[str, Any], tiny_llama: Path, tiny_draft: Path, expected: list[list[int]]
) -> None:
    draft = tiny_llama if settings.pop("self_draft", False) else tiny_draft
    engine = load_engine(EngineConfig(model=str(tiny_llama), draft_model=str(draft), **settings))
    assert run(engine, PENALISED, prompts()) == expected
    if draft == tiny_llama:
        stats = engine.stats()
        assert stats.accepted_tokens == stats.draft_tokens > 0, "the draft applies the same penalties"


def test_alternatives_are_the_likeliest_tokens_of_the_model_itself(tiny_llama: Path) -> None:
    """Before penalties and temperature, as in vLLM."""
    prompt = prompts()[2]
    oracle = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    engine = load_engine(EngineConfig(model=str(tiny_llama)))
    asking = SamplingParams(
        max_tokens=6, temperature=2.0, seed=3, logit_bias=((9, 5.0),), logprobs=True, top_logprobs=4
    )
    [outputs, _] = collect(engine, [(prompt, asking), (prompts()[1], SamplingParams(max_tokens=6, logprobs=True))])
    tokens = [t for output in outputs for t in output.tokens]
    with torch.inference_mode():
        logprobs = oracle(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    for row, token, logprob, top in zip(
        logprobs,
        tokens,
        [x for output in outputs for x in output.logprobs],
        [x for output in outputs for x in output.top_logprobs],
        strict=True,
    ):
        values, index = row.topk(4)
        assert [t for t, _ in top] == index.tolist()
        assert [x for _, x in top] == pytest.approx(values.tolist(), abs=1e-4)
        assert logprob == pytest.approx(float(row[token]), abs=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_p": 1.5}, r"min_p: expected a number in \[0, 1\], given 1.5"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty: expected a number in \[0.01, 100.0\], given 0.0"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**values)
