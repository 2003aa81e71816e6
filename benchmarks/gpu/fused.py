"""The fused kernels and the products with quantised weights beside torch, at Llama-3-8B's widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.attention import BLOCK_SIZE
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.ceilings import matrix_rate, seconds
from benchmarks.gpu.rows import Row
from engine.kernels import quantized_product, rms_norm, rotate_store, silu_mul
from engine.kernels import torch_operations as twin
from engine.kernels.reference import PagedTensor
from engine.layers.norm import RMSNorm
from engine.layers.quantization import quantize_int4, quantize_int8

Call = Callable[[], object]


def fused_rows(bench: Bench) -> Iterator[Row]:
    """Times torch's time over ours. No targets: what counts is the decode step that they are part of."""
    rate = matrix_rate(bench.scratch)
    yield Row("bfloat16 product of random matrices", rate / 1e12, "TFLOP/s")
    for rows in bench.sizes.fused_rows:
        for name, (ours, theirs, weights) in _pairs(bench, rows).items():
            took, other = seconds(ours, bench.scratch), seconds(theirs, bench.scratch)
            details = {"us": took * 1e6, "torch us": other * 1e6}
            if weights:
                details["of copy bandwidth"] = sum(tensor.nbytes for tensor in weights) / took / bench.bandwidth
            yield Row(f"{name}, {rows} rows", other / took, "x torch", None, bench.ceiling, details)


def _pairs(bench: Bench, rows: int) -> dict[str, tuple[Call, Call, list[torch.Tensor]]]:
    """Ours, torch's, and the weights that ours reads."""
    heads, kv_heads, head_dim = bench.sizes.attention_heads
    width, dtype = bench.sizes.fused_width, torch.float32 if bench.device.type == "cpu" else torch.bfloat16
    options: dict[str, Any] = {"device": bench.device, "dtype": dtype}
    x, delta = (torch.randn(rows, width, **options) for _ in range(2))
    norm = RMSNorm(torch.ones(width, **options), 1e-6)
    gate_up = torch.randn(rows, 7 * width, **options)
    qkv = torch.randn(rows, heads + 2 * kv_heads, head_dim, **options)
    angles = (torch.ones(rows, 1, head_dim, **options),) * 2
    slots = torch.arange(rows, device=bench.device)
    pages = [PagedTensor.empty("int8", 64, BLOCK_SIZE, kv_heads, head_dim, bench.device) for _ in range(2)]
    dense = torch.randn(width, width, **options) * 0.02
    int8, int4 = quantize_int8(dense), quantize_int4(dense, 64)
    return {
        "residual + norm": (
            lambda: rms_norm.add_rms_norm(x, delta, norm.weight, 1e-6), lambda: twin.add_norm(x, delta, norm), []
        ),
        "SiLU x up": (lambda: silu_mul.silu_mul(gate_up), lambda: twin.silu_mul(gate_up), []),
        "rotate + store int8": (
            lambda: rotate_store.rotate_and_store(qkv, angles, slots, None, *pages),
            lambda: twin.rotate_and_store(qkv, angles, slots, None, *pages), [],
        ),
        f"int8 product {width} x {width}": (
            lambda: quantized_product.quantized_product(x, int8), lambda: F.linear(x, dense), int8.tensors()
        ),
        f"int4 product {width} x {width}": (
            lambda: quantized_product.quantized_product(x, int4), lambda: F.linear(x, dense), int4.tensors()
        ),
    }  # fmt: skip
