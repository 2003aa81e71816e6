"""Norm, rotation, quantising and storing in one launch against the four twins one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import triton
import triton.language as tl
from paged import CPU, gaussian

from engine.kernels.reference import STORAGE_DTYPES, PagedTensor, load, store
from engine.kernels.rotate_store import encode_e4m3, rotate_and_store
from engine.layers.norm import RMSNorm
from engine.layers.rotary import RotaryEmbedding, rotate
from engine.models.config import Rope

SLOTS = [9, 3, 62, 40, 17]


@dataclass
class Case:
    dtype: str = "float32"
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 16
    normed: bool = False


CASES = {
    **{f"pages in {dtype}": Case(dtype) for dtype in STORAGE_DTYPES},
    "with norms of query and key heads": Case(normed=True),
    "norms and int4": Case("int4", normed=True, head_dim=64),
    "a head size that is no power of two": Case("int8", head_dim=24),
    "more heads than a program takes": Case("fp8_e4m3", heads=(20, 20)),
    "one key head": Case(heads=(5, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_twins(name: str) -> None:
    case = CASES[name]
    (heads, kv_heads), size = case.heads, case.head_dim
    qkv = gaussian(len(SLOTS), heads + 2 * kv_heads, size, seed=1)
    rotary = RotaryEmbedding(Rope(), size, 50, CPU, torch.float32)
    positions, slots = torch.tensor([7, 0, 49, 3, 12]), torch.tensor(SLOTS)
    norm = RMSNorm(gaussian(heads + kv_heads, size, seed=2), 1e-5) if case.normed else None
    found, wanted = (
        [PagedTensor.empty(case.dtype, 4, 16, kv_heads, size, CPU) for _ in range(2)] for _ in range(2)
    )  # fmt: skip
    query = rotate_and_store(qkv, rotary.at(positions), slots, norm, *found)
    qk, v = qkv.split((heads + kv_heads, kv_heads), 1)
    qk = rotate(qk if norm is None else norm(qk), *rotary.at(positions))
    assert torch.allclose(query, qk[:, :heads], atol=1e-5)
    for paged, twin, x in zip(found, wanted, (qk[:, heads:], v), strict=True):
        store(twin, slots, x)
        stored, expected = (load(p, torch.arange(4), torch.float32) for p in (paged, twin))
        # Rotated numbers that differ in the last bit may round to neighbouring codes, but few do.
        step = {"bfloat16": 2**-7, "float16": 2**-10, "fp8_e4m3": 0.1, "int8": 0.02, "int4": 0.4}.get(case.dtype, 1e-5)
        assert torch.allclose(stored, expected, atol=step, rtol=step)
        if case.dtype != "bfloat16":  # which the interpreter's stores truncate
            assert (stored - expected).abs().gt(1e-5).float().mean() < 0.003


def test_nothing_but_the_slots_is_written() -> None:
    keys, values = (PagedTensor.empty("int8", 4, 16, 2, 16, CPU) for _ in range(2))
    rotary = RotaryEmbedding(Rope(), 16, 50, CPU, torch.float32)
    slots = torch.tensor(SLOTS)
    qkv = gaussian(len(SLOTS), 8, 16, seed=1)
    rotate_and_store(qkv, rotary.at(torch.arange(5)), slots, None, keys, values)
    untouched = [slot for slot in range(64) if slot not in SLOTS]
    for paged in (keys, values):
        assert paged.scales is not None
        assert not paged.data.flatten(0, 1)[untouched].any() and not paged.scales.flatten(0, 1)[untouched].any()


@triton.jit
def _encode_all(out, x, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, encode_e4m3(tl.load(x + at)))


def test_e4m3_codes_are_torchs() -> None:
    """Every code, every midpoint between neighbours, and what lies just beside it."""
    values = torch.arange(128, dtype=torch.uint8).view(torch.float8_e4m3fn).float()[:127]
    middles = (values[1:] + values[:-1]) / 2
    x = torch.cat((values, middles, middles.nextafter(torch.tensor(0.0)), middles.nextafter(torch.tensor(1e9))))
    x = torch.cat((x, -x, torch.zeros(1024 - 2 * len(x))))
    codes = torch.zeros(1024, dtype=torch.uint8)
    _encode_all[(1,)](codes, x, N=1024)
    assert torch.equal(codes, x.to(torch.float8_e4m3fn).view(torch.uint8))
