"""Launching a step reads nothing back from the device: on a GPU each look at a number waits for all before it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from test_llm_engine import prompts
from torch.utils._python_dispatch import TorchDispatchMode

from engine.config import EngineConfig
from engine.model_runner import ModelRunner, load_engine
from engine.runner import Pending
from engine.scheduler import ScheduledSequence
from engine.sequence import ListedTokens, SamplingParams

LOOKS = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
SIZED_BY_CONTENTS = ("nonzero", "bincount", "masked_select", "_local_scalar_dense", "_unique2")
"""Operations that wait for their input to know the size of their output."""

ASKED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "top_p": 0.8, "top_k": 30, "min_p": 0.01},
    "penalised": {"frequency_penalty": 0.5, "repetition_penalty": 1.2, "logit_bias": ((7, 2.0),)},
    "penalised and sampled": {"temperature": 1.1, "presence_penalty": 0.5},
    "log-probabilities": {"logprobs": True, "top_logprobs": 3},
    "forced": {"forced": tuple(range(20, 32)), "logprobs": True, "listed": ListedTokens(3)},
}


class NoLook(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in SIZED_BY_CONTENTS, f"{func} waits"
        return func(*args, **(kwargs or {}))


def refuse(name: str) -> Any:
    def look(*_: Any, **__: Any) -> None:
        raise AssertionError(f"a launch looks at a tensor: {name}")

    return look


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="no speculation"),
        pytest.param({"num_speculative_tokens": 3}, id="draft model"),
        pytest.param({"num_speculative_tokens": 3, "synthetic_acceptance": 0.7}, id="synthetic acceptance"),
        pytest.param({"num_speculative_tokens": 3, "speculative_method": "ngram", "prompt_lookup_min": 1}, id="ngram"),
        pytest.param({"kv_window": 16, "kv_heavy_tokens": 16}, id="heavy hitters"),
    ],
)
def test_a_launch_reads_nothing_back(
    settings: dict[str, Any], tiny_llama: Path, tiny_draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, launched = ModelRunner.launch, 0

    def watched(runner: ModelRunner, step: list[ScheduledSequence]) -> Pending:
        nonlocal launched
        launched += 1
        with ExitStack() as watch:
            for name in LOOKS:
                watch.enter_context(mock.patch.object(torch.Tensor, name, refuse(name)))
            watch.enter_context(NoLook())
            return launch(runner, step)

    monkeypatch.setattr(ModelRunner, "launch", watched)
    engine = load_engine(EngineConfig(model=str(tiny_llama), draft_model=str(tiny_draft), **settings))
    for index, params in enumerate(ASKED.values()):
        length = len(params.get("forced", range(15)))
        engine.add(str(index), [*prompts()[0], 7, 8, 7], SamplingParams(max_tokens=length, ignore_eos=True, **params))
        engine.step()
    while engine.has_work():
        engine.step()
    assert launched >= 10 and engine.stats().generation_tokens == 5 * 15 + 12
