"""The two checkpoints that most tests of the engine share, and a look at the logits behind the front door."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import write_model

from engine.models.decoder import Decoder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with tokenizer and chat template: the target."""
    return write_model(tmp_path_factory.mktemp("tiny-llama"), seed=1)


@pytest.fixture(scope="session")
def tiny_draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller random checkpoint with the same tokenizer: the draft."""
    return write_model(tmp_path_factory.mktemp("tiny-draft"), seed=2, layers=1, hidden=32, tie_word_embeddings=True)


@pytest.fixture
def seen_logits(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every logits tensor [rows, vocab] that a decoder computes, in order."""
    seen: list[torch.Tensor] = []
    compute = Decoder.logits

    def record(self: Decoder, hidden: torch.Tensor) -> torch.Tensor:
        seen.append(compute(self, hidden))
        return seen[-1]

    monkeypatch.setattr(Decoder, "logits", record)
    return seen
