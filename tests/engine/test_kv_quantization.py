"""Stored keys and values: bytes as planned, error bounds per dtype, and what the rotation under int4 is for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import write_model
from torch import Tensor

from engine.config import EngineConfig
from engine.kernels.hadamard import rotation
from engine.kernels.reference import STORAGE_DTYPES, PagedTensor, load, paged_attention, store
from engine.layers.attention import Span, layout
from engine.memory import page_bytes
from engine.model_runner import load_engine
from engine.sequence import SamplingParams, Sequence

CPU = torch.device("cpu")
TOKENS, HEADS, KV_HEADS, SIZE = 48, 4, 2, 64


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored(x: Tensor, dtype: str) -> PagedTensor:
    paged = PagedTensor.empty(dtype, 4, 16, x.shape[1], x.shape[2], CPU)
    store(paged, torch.arange(len(x)), x)
    return paged


def read_back(x: Tensor, dtype: str) -> Tensor:
    values = load(stored(x, dtype), torch.arange(4), torch.float32).flatten(0, 1)[: len(x)]
    return values @ rotation(x.shape[-1], CPU).T if dtype == "int4" else values


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
@pytest.mark.parametrize("head_dim", [2, 16, 64])
def test_a_page_takes_the_bytes_that_were_planned(dtype: str, head_dim: int) -> None:
    paged = PagedTensor.empty(dtype, 5, 16, 3, head_dim, CPU)
    scales = 0 if paged.scales is None else paged.scales.nbytes
    assert paged.data.nbytes + scales == 5 * page_bytes(dtype, 16, 3, head_dim)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [("float32", 0.0), ("bfloat16", 0.003), ("float16", 0.0004), ("fp8_e4m3", 0.03), ("int8", 0.01), ("int4", 0.12)],
)
def test_relative_error_of_what_is_read_back(dtype: str, bound: float) -> None:
    x = gaussian(TOKENS, KV_HEADS, SIZE)
    assert error(read_back(x, dtype), x) <= bound


@pytest.mark.parametrize("dtype", ["int8", "int4", "fp8_e4m3"])
def test_zeros_are_read_back_as_almost_zeros(dtype: str) -> None:
    assert read_back(torch.zeros(TOKENS, KV_HEADS, SIZE), dtype).abs().max() < 1e-9


def attend(query: Tensor, keys: Tensor, values: Tensor, dtype: str) -> Tensor:
    sequence = Sequence("a", (0,) * TOKENS, SamplingParams(), 0, block_table=[0, 1, 2])
    batch = layout([Span(sequence, 0, [0] * TOKENS)], 16, None, 0, CPU)
    return paged_attention(query, stored(keys, dtype), stored(values, dtype), batch.groups, SIZE**-0.5)


def test_int4_attention_is_that_of_the_values_read_back() -> None:
    """The rotation cancels between query and key, and is undone on the output."""
    query, keys, values = gaussian(TOKENS, HEADS, SIZE), gaussian(TOKENS, KV_HEADS, SIZE, seed=1), gaussian(
        TOKENS, KV_HEADS, SIZE, seed=2
    )  # fmt: skip
    plain = attend(query, read_back(keys, "int4"), read_back(values, "int4"), "float32")
    assert torch.allclose(attend(query, keys, values, "int4"), plain, atol=1e-5)


def test_rotation_spreads_outlier_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of trained models have a few channels that are much larger than the rest (KIVI, Liu et al. 2024)."""
    query, values = gaussian(TOKENS, HEADS, SIZE), gaussian(TOKENS, KV_HEADS, SIZE, seed=2)
    keys = gaussian(TOKENS, KV_HEADS, SIZE, seed=1)
    keys[:, :, [3, 40]] *= 20.0
    exact = attend(query, keys, values, "float32")
    rotated = error(attend(query, keys, values, "int4"), exact)
    kept = error(read_back(keys, "int4")[:, :, 4:40], keys[:, :, 4:40])
    monkeypatch.setattr("engine.kernels.reference.rotation", lambda size, device: torch.eye(size))
    monkeypatch.setattr(f"{__name__}.rotation", lambda size, device: torch.eye(size))
    unrotated = error(attend(query, keys, values, "int4"), exact)
    lost = error(read_back(keys, "int4")[:, :, 4:40], keys[:, :, 4:40])
    assert rotated < unrotated / 2
    assert kept < lost / 2


def test_int4_needs_a_head_size_that_is_a_power_of_two(tmp_path: Path) -> None:
    model = write_model(tmp_path, hidden=96)
    with pytest.raises(ValueError, match="^kv_cache_dtype: int4 needs a head_dim that is a power of two, given 24$"):
        load_engine(EngineConfig(model=str(model), kv_cache_dtype="int4"))
    load_engine(EngineConfig(model=str(model), kv_cache_dtype="int8"))
