"""python -m benchmarks.gpu_check: every kernel against its torch twin on a GPU, at sizes that serving has.

Fresh random inputs each time (the seed is in the results), outputs poisoned with NaN before each launch, 32,768 pages.
Then the engine (benchmarks/gpu/engine_tokens.py): the GPU against the CPU, CUDA graphs against eager steps, steps in
flight against none. Results are written after each check, so that a run that is ended keeps them. Exit 0: all
passed; 1: some did not; 2: no GPU.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu import engine_tokens, host_waits
from benchmarks.gpu_results import require_gpu, write
from engine.kernels import attention, quantized_product, reference, rms_norm, rotate_store, sampling, silu_mul
from engine.kernels import torch_operations as twin
from engine.kernels.reference import STORAGE_DTYPES, PagedTensor
from engine.layers.norm import RMSNorm
from engine.layers.quantization import quantize_int4, quantize_int8
from engine.layers.rotary import RotaryEmbedding
from engine.models.config import Rope
from engine.sequence import SamplingParams
from tests.engine.kernels.paged import both_layouts, copied, fill, gaussian, make_spans, row_order

MINI = Path(__file__).parent.parent / "engine" / "mini" / "mini"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Of the largest output, per dtype of the activations."""
MIXED = [(1, 8192), (1, 1), (5, 18), (129, 463), (1, 1328), (8, 4096), (512, 512)]
DECODES = [(1, 64 * 61 + i) for i in range(64)]


@dataclass(frozen=True)
class Attention:
    """One step. lengths: rows and end position of each sequence. splits None: by the table."""

    dtype: str
    compute: torch.dtype = torch.bfloat16
    lengths: list[tuple[int, int]] = field(default_factory=lambda: MIXED)
    heads: tuple[int, int] = (32, 8)
    head_dim: int = 128
    block_size: int = 16
    window: int | None = None
    sinks: int = 0
    splits: int | None = None
    weigh: bool = False
    pages: int = 32_768


def attention_cases() -> Iterator[Attention]:
    for dtype in STORAGE_DTYPES:
        compute = {"float32": torch.float32, "float16": torch.float16}.get(dtype, torch.bfloat16)
        for splits in (1, 16):
            yield Attention(dtype, compute, splits=splits)
            yield Attention(dtype, compute, DECODES, splits=splits)
        yield Attention(dtype, compute, window=1000, sinks=4)
        yield Attention(dtype, compute, DECODES, block_size=64)
        yield Attention(dtype, torch.float32, splits=4)
    for heads in ((4, 4), (8, 2), (5, 1), (64, 8), (16, 1)):
        yield Attention("bfloat16", heads=heads)
    for head_dim in (64, 80, 96, 256):
        yield Attention("int8", head_dim=head_dim)
    for dtype in ("bfloat16", "int4"):
        yield Attention(dtype, lengths=DECODES, weigh=True)


def check_attention(case: Attention, device: torch.device, seed: int) -> float:
    """The largest error over the largest output (and of page masses, over the largest mass)."""
    spans = make_spans(case.lengths, case.block_size, case.pages, {})
    heads, kv_heads = case.heads
    size = (case.pages, case.block_size, kv_heads, case.head_dim, device)
    keys = fill(PagedTensor.empty(case.dtype, *size), spans, seed)
    values = fill(PagedTensor.empty(case.dtype, *size), spans, seed + 1000)
    groups, ragged = both_layouts(spans, case.block_size, case.window, case.sinks, case.weigh, device)
    assert ragged.ragged is not None
    order = row_order(groups, ragged, spans).to(device)
    query = gaussian(len(order), heads, case.head_dim, seed=seed + 2000).to(device, case.compute)
    scale = case.head_dim**-0.5
    with poisoned():
        found = attention.paged_attention(query, keys, values, ragged.ragged, scale, case.splits)[order]
    # The twin in float32, from the same bytes and the same rounded queries.
    wanted = reference.paged_attention(query[order].float(), copied(keys), copied(values), groups.groups, scale)
    error = relative(found, wanted)
    if case.weigh:
        pairs = zip(ragged.page_masses(), groups.page_masses(), strict=True)
        masses = [(torch.tensor(a), torch.tensor(b)) for a, b in pairs]
        error = max(error, *(relative(a[: len(b)], b[: len(a)]) for a, b in masses))
    return error


def check_capture(case: Attention, device: torch.device, seed: int) -> float:
    """Largest difference of attention as a CUDA graph, on queries written after its capture, to eager."""
    spans = make_spans(case.lengths, case.block_size, case.pages, {})
    size = (case.pages, case.block_size, case.heads[1], case.head_dim, device)
    keys = fill(PagedTensor.empty(case.dtype, *size), spans, seed)
    ragged = both_layouts(spans, case.block_size, case.window, case.sinks, device=device)[1].ragged
    assert ragged is not None
    rows = sum(rows for rows, _ in case.lengths)
    query = torch.zeros(rows, case.heads[0], case.head_dim, dtype=case.compute, device=device)
    run = partial(attention.paged_attention, query, keys, keys, ragged, 0.1, case.splits)
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    query.copy_(gaussian(*query.shape, seed=seed))
    graph.replay()
    return relative(captured, run())


def check_rotate_store(dtype: str, compute: torch.dtype, device: torch.device, seed: int, tokens: int) -> float:
    heads, kv_heads, size = 32, 8, 128
    qkv = gaussian(tokens, heads + 2 * kv_heads, size, seed=seed).to(device, compute)
    slots = torch.randperm(4 * tokens, generator=torch.Generator().manual_seed(seed))[:tokens].to(device)
    rotary = RotaryEmbedding(Rope(), size, 8192, device, torch.float32)
    angles = rotary.at(torch.randint(0, 8192, (tokens,), device=device))
    norm = RMSNorm(gaussian(heads + kv_heads, size, seed=seed + 1).to(device), 1e-6)
    pages = [PagedTensor.empty(dtype, -(-4 * tokens // 16), 16, kv_heads, size, device) for _ in range(4)]
    with poisoned():
        found = rotate_store.rotate_and_store(qkv, angles, slots, norm, pages[0], pages[1])
    wanted = twin.rotate_and_store(qkv.float(), angles, slots, norm, pages[2], pages[3])
    everything = torch.arange(pages[0].data.shape[0], device=device)
    stored = [reference.load(paged, everything, torch.float32) for paged in pages]
    # A neighbouring code is no error.
    coarse = {"int4": 0.1, "fp8_e4m3": 0.07, "int8": 0.01, "bfloat16": 0.008, "float16": 0.001}.get(dtype, 0.0)
    errors = [max(relative(stored[i], stored[i + 2]) - coarse, 0.0) for i in (0, 1)]
    return max(relative(found, wanted), *errors)


def check_small(compute: torch.dtype, device: torch.device, seed: int, rows: int, width: int) -> dict[str, float]:
    """The kernels that take rows: an error each."""
    x, delta = (gaussian(rows, width, seed=seed + i).to(device, compute) for i in range(2))
    norm = RMSNorm(gaussian(width, seed=seed + 2).to(device, compute), 1e-6)
    with poisoned():
        total, normed = rms_norm.add_rms_norm(x, delta, norm.weight, norm.eps)
        multiplied = silu_mul.silu_mul(x)
    wide = RMSNorm(norm.weight.float(), norm.eps)
    errors = {
        "residual": relative(total, x + delta),
        "norm": relative(normed, wide(total.float())),
        "silu": relative(multiplied, twin.silu_mul(x.float())),
    }
    dense = gaussian(1024, width, seed=seed + 3).to(device)
    for name, weight in {"int8": quantize_int8(dense), "int4": quantize_int4(dense, 64)}.items():
        with poisoned():
            found = quantized_product.quantized_product(x, weight)
        errors[f"{name} product"] = relative(found, x.float() @ weight.dense(torch.float32).T)
    return errors


def check_sampling(device: torch.device, seed: int, rows: int, vocab: int) -> float:
    """Share of rows whose token is not the torch sampler's."""
    generator = random.Random(seed)
    logits = (4 * gaussian(rows, vocab, seed=seed)).to(torch.bfloat16).float().to(device)
    params = [
        SamplingParams(
            temperature=generator.choice((0.0, 0.7, 1.0)),
            top_k=generator.choice((0, 1, 50)),
            top_p=generator.choice((1.0, 0.9, 0.3)),
            min_p=generator.choice((0.0, 0.05)),
        )
        for _ in range(rows)
    ]
    numbers = [generator.random() for _ in range(rows)]
    found, wanted = (version.sample(logits, params, numbers) for version in (sampling, twin))
    return int((found != wanted).sum()) / rows


@contextmanager
def poisoned() -> Iterator[None]:
    """Every torch.empty inside holds NaN (whole numbers: the largest), so that what a kernel leaves out shows."""
    empty, like = torch.empty, torch.empty_like

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            largest = float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
            return tensor.fill_(largest)

        return made

    with mock.patch("torch.empty", poison(empty)), mock.patch("torch.empty_like", poison(like)):
        yield


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest wanted number; NaN anywhere is infinite."""
    difference = float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max())
    return difference if difference == difference else float("inf")


def main() -> int:
    device = require_gpu("gpu-check")
    seed = random.SystemRandom().randrange(2**31)
    rows: list[dict[str, Any]] = []
    stamp = time.strftime("%Y%m%d-%H%M%S")

    def note(check: str, error: float, bound: float) -> None:
        rows.append({"check": check, "error": error, "bound": bound, "passed": error <= bound, "seed": seed})
        print(f"{'ok  ' if error <= bound else 'FAIL'} {check}: {error:.3g} (bound {bound:g})", flush=True)
        write("gpu-check", rows, stamp=stamp)

    for case in attention_cases():
        shape = f"{len(case.lengths)} sequences, heads {case.heads}, {case.head_dim}, pages of {case.block_size}"
        name = f"attention: {case.dtype} in {case.compute}, {shape}, window {case.window}, splits {case.splits}"
        note(name, check_attention(case, device, seed), TOLERANCE[case.compute])
    for splits in (1, 16):
        case = Attention("int8", lengths=DECODES, splits=splits)
        note(f"attention as a CUDA graph: splits {splits}", check_capture(case, device, seed), 0.0)
    for compute in (torch.float32, torch.bfloat16, torch.float16):
        for dtype in STORAGE_DTYPES:
            error = check_rotate_store(dtype, compute, device, seed, tokens=1024)
            note(f"norm, rotation and store: {dtype} from {compute}", error, TOLERANCE[compute])
        for batch in (1, 7, 64):
            for name, error in check_small(compute, device, seed, batch, width=4096).items():
                note(f"{name}: {batch} rows in {compute}", error, TOLERANCE[compute])
    note("sampling: rows with another token", check_sampling(device, seed, 256, 151_936), 0.005)
    for name, share, bound in engine_tokens.checks("cuda"):
        note(f"engine, requests with other tokens: {name}", share, bound)
    for speculates in (False, True):
        note(f"host waits for the GPU in launches, speculates: {speculates}", host_waits.host_waits(speculates), 0.0)
    print(write("gpu-check", rows, stamp=stamp))
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
