"""What the answers of a configuration depend on."""

from __future__ import annotations

from typing import Any

import pytest

from tuner.serving.adapters import for_probes, quality_key
from tuner.serving.config import ServingConfig


def config(**knobs: Any) -> ServingConfig:
    return ServingConfig("bundled", {"model": "m"}, knobs)


@pytest.mark.parametrize("heavy", [0, 64])
def test_heavy_hitters_are_keyed_and_probed_with_their_own_steps(heavy: int) -> None:
    """They evict after each step, so chunks and pages change their answers; a plain window's answers they do not."""
    one = config(kv_window=64, kv_heavy_tokens=heavy, prefill_chunk_size=32)
    other = config(kv_window=64, kv_heavy_tokens=heavy, prefill_chunk_size=64)
    assert (quality_key(one) == quality_key(other)) == (heavy == 0)
    assert (for_probes(one) == one) == (heavy > 0)
