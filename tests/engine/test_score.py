"""The log-probabilities that /score lists beside those of the forced tokens, against the whole distribution."""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.config import EngineConfig
from engine.model_runner import load_engine
from engine.protocol import ApiError, ScoreItem
from engine.sequence import ListedTokens, SamplingParams

POSITIONS = 19
"""More than two steps verify."""


def scored(engine: Any, listed: ListedTokens, tokens: list[int]) -> tuple[bytes, bytes]:
    prompt, target = tokens[:-POSITIONS], tuple(tokens[-POSITIONS:])
    engine.add("a", prompt, SamplingParams(len(target), logprobs=True, forced=target, listed=listed))
    ids = values = b""
    while engine.has_work():
        for output in engine.step():
            ids, values = ids + output.listed_ids, values + output.listed_logprobs
    return ids, values


@pytest.fixture
def tokens() -> list[int]:
    generator = random.Random(0)
    return [generator.randrange(16, 250) for _ in range(40 + POSITIONS)]


def test_the_likeliest_and_the_rest_are_those_of_the_softmax(
    tiny_llama: Path, seen_logits: list[torch.Tensor], tokens: list[int]
) -> None:
    engine = load_engine(EngineConfig(model=str(tiny_llama), device="cpu"))
    ids, values = scored(engine, ListedTokens(8), tokens)
    whole = torch.cat([logits for logits in seen_logits if len(logits)]).double().softmax(-1)
    top = whole.topk(8, -1)
    listed = np.frombuffer(values, np.float32).reshape(POSITIONS, 9)
    assert np.frombuffer(ids, np.int32).reshape(POSITIONS, 8).tolist() == top.indices.tolist()
    np.testing.assert_allclose(np.exp(listed[:, :8]), top.values, rtol=1e-4)
    np.testing.assert_allclose(np.exp(listed[:, 8]), 1 - top.values.sum(-1), rtol=1e-4)


def test_given_tokens_are_listed_at_their_own_positions(
    tiny_llama: Path, seen_logits: list[torch.Tensor], tokens: list[int]
) -> None:
    engine = load_engine(EngineConfig(model=str(tiny_llama), device="cpu"))
    wanted = np.random.default_rng(0).integers(0, 250, (POSITIONS, 3)).astype("<i4")
    _, values = scored(engine, ListedTokens(3, wanted.tobytes()), tokens)
    whole = torch.cat([logits for logits in seen_logits if len(logits)]).log_softmax(-1)
    expected = whole.gather(1, torch.from_numpy(wanted.astype(np.int64)))
    np.testing.assert_allclose(np.frombuffer(values, np.float32).reshape(POSITIONS, 4)[:, :3], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("no base64!", id="not base64"),
        pytest.param("", id="nothing"),
        pytest.param(base64.b64encode(np.zeros(3, "<i4").tobytes()).decode(), id="three ids for two tokens"),
        pytest.param(base64.b64encode(np.array([1, 100], "<i4").tobytes()).decode(), id="outside the vocabulary"),
        pytest.param(base64.b64encode(b"123").decode(), id="three bytes"),
    ],
)
def test_what_is_no_list_of_tokens_is_refused(data: str) -> None:
    with pytest.raises(ApiError, match="listed_ids: expected base64 of int32") as caught:
        ScoreItem(prompt="a", target="b", listed_ids=data).listed(0, 2, 100)
    assert caught.value.status == 400


def test_scores_are_read_from_the_stored_cache(tiny_llama: Path, tokens: list[int]) -> None:
    """One page of one layer corrupted after the prompt was computed moves what comes after, and nothing before."""

    def logprobs(poison: bool) -> list[float]:
        engine = load_engine(EngineConfig(model=str(tiny_llama), device="cpu"))
        prompt, target = tokens[:-POSITIONS], tuple(tokens[-POSITIONS:])
        engine.add("a", prompt, SamplingParams(len(target), logprobs=True, forced=target))
        found = list(engine.step()[0].logprobs)
        if poison:
            _, values = engine._runner._models[0].cache[0]  # type: ignore[attr-defined]
            values.data[engine._sequences["a"].block_table[1]] += 1.0
        while engine.has_work():
            found += [logprob for output in engine.step() for logprob in output.logprobs]
        return found

    clean, poisoned = logprobs(False), logprobs(True)
    assert poisoned[0] == clean[0]
    assert min(abs(a - b) for a, b in zip(poisoned[1:], clean[1:], strict=True)) > 1e-6
