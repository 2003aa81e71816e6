"""The faults that benchmarks/planted_faults.py plants still reach what the decoder calls."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.faulty_engine import PLANTS, plant
from engine.config import EngineConfig
from engine.kernels import torch_operations
from engine.model_runner import load_engine
from engine.models.decoder import Decoder
from engine.sequence import SamplingParams

MINI = Path(__file__).parent.parent.parent / "engine" / "mini" / "mini"


def logprobs() -> list[float]:
    """Of eight forced tokens after 600 others."""
    generator = random.Random(0)
    tokens = [generator.randrange(16, 2048) for _ in range(608)]
    engine = load_engine(EngineConfig(model=str(MINI), device="cpu", kv_cache_dtype="int8"))
    engine.add("a", tokens[:600], SamplingParams(8, logprobs=True, forced=tuple(tokens[600:])))
    found: list[float] = []
    while engine.has_work():
        found += [logprob for output in engine.step() for logprob in output.logprobs]
    return found


@pytest.fixture(scope="module")
def clean() -> list[float]:
    return logprobs()


@pytest.mark.parametrize("fault", PLANTS)
def test_a_planted_fault_changes_scores(fault: str, clean: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((torch_operations, "store"), (torch_operations, "layout"), (Decoder, "forward")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be put back afterwards
    plant(fault)
    assert max(abs(a - b) for a, b in zip(logprobs(), clean, strict=True)) > 0.01
