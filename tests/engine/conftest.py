"""The two checkpoints that most tests of the engine share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import write_model


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with tokenizer and chat template: the target."""
    return write_model(tmp_path_factory.mktemp("tiny-llama"), seed=1)


@pytest.fixture(scope="session")
def tiny_draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller random checkpoint with the same tokenizer: the draft."""
    return write_model(tmp_path_factory.mktemp("tiny-draft"), seed=2, layers=1, hidden=32, tie_word_embeddings=True)
