"""Compiles every kernel for a Hopper GPU without one: python compile_for_gpu.py, a process of its own.

The interpreter takes what the compiler refuses (types that change in a loop, products too small for the tensor cores).
Launches stop after compilation, so the wrappers run as they are, on tensors of the CPU.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "0"

import functools
from collections.abc import Callable
from types import SimpleNamespace

import torch
import triton
from paged import CPU, make_spans
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from engine.kernels import attention, quantized_product, rms_norm, rotate_store, sampling, silu_mul
from engine.kernels.reference import PagedTensor
from engine.layers.norm import RMSNorm
from engine.layers.quantization import quantize_int4, quantize_int8
from engine.layers.ragged import ragged_layout
from engine.sequence import SamplingParams

HOPPER = GPUTarget("cuda", 90, 32)
CASES: list[tuple[str, Callable[[], object]]] = []


def attend(dtype: str, compute: torch.dtype, splits: int, window: int | None, block_size: int, weigh: bool) -> None:
    spans = make_spans([(1, 40), (5, 21)], block_size, 24, {})
    size = (24, block_size, 2, 128, CPU)
    keys, values = PagedTensor.empty(dtype, *size), PagedTensor.empty(dtype, *size)
    ragged = ragged_layout(spans, block_size, window, 4, CPU, weigh).ragged
    assert ragged is not None
    attention.paged_attention(torch.zeros(6, 8, 128, dtype=compute), keys, values, ragged, 0.1, splits)


def rotate(dtype: str, norm: bool) -> None:
    size = (4, 16, 2, 128, CPU)
    pages = PagedTensor.empty(dtype, *size), PagedTensor.empty(dtype, *size)
    qkv, angles = torch.zeros(3, 12, 128, dtype=torch.bfloat16), torch.zeros(3, 1, 128, dtype=torch.bfloat16)
    norms = RMSNorm(torch.ones(10, 128, dtype=torch.bfloat16), 1e-5) if norm else None
    rotate_store.rotate_and_store(qkv, (angles, angles), torch.arange(3), norms, *pages)


ROW = torch.zeros(3, 256, dtype=torch.bfloat16)
WEIGHT = torch.ones(96, 256)
CASES += [
    ("norm and int4 pages", functools.partial(rotate, "int4", True)),
    ("fp8 pages", functools.partial(rotate, "fp8_e4m3", False)),
    ("bfloat16 pages", functools.partial(rotate, "bfloat16", False)),
    ("residual and norm", lambda: rms_norm.add_rms_norm(ROW, ROW, ROW[0], 1e-5)),
    ("sampling", lambda: sampling.sample(WEIGHT, [SamplingParams(temperature=1.0)] * 96, [0.5] * 96)),
    ("silu", lambda: silu_mul.silu_mul(ROW)),
    ("int8 product", lambda: quantized_product.quantized_product(ROW, quantize_int8(WEIGHT))),
    ("int4 product", lambda: quantized_product.quantized_product(ROW, quantize_int4(WEIGHT, 32))),
]
for dtype, compute in {"bfloat16": torch.bfloat16, "int4": torch.bfloat16}.items():
    CASES.append((f"attention {dtype} decode", functools.partial(attend, dtype, compute, 4, None, 16, True)))
for dtype, compute in {"float32": torch.float32, "fp8_e4m3": torch.bfloat16, "int8": torch.float16}.items():
    CASES.append((f"attention {dtype} window", functools.partial(attend, dtype, compute, 1, 20, 64, False)))


def main() -> None:
    driver = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: HOPPER
    )
    triton.runtime.driver.set_active(driver)
    compiled = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: object, **options: object) -> None:
        kernel = run(self, *args, **{**options, "warmup": True})
        compiled.append(kernel)
        print(f"{self.__name__}: {kernel.metadata.shared} bytes of shared memory, {len(kernel.asm['cubin'])} of code")

    JITFunction.run = compile_only
    for name, call in CASES:
        before = len(compiled)
        call()
        assert len(compiled) > before, name


if __name__ == "__main__":
    main()
