"""Times on the device, and the two ceilings: bytes moved a second by a large copy, operations a second of cuBLAS."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

ITERATIONS = 30
SCRATCH_BYTES = 2**28
"""Several times the L2 cache of any GPU (60 MB on an H200)."""
MATRIX = 8192
"""Rows and columns of the product."""


def seconds(call: Callable[[], object], scratch: torch.Tensor, iterations: int = ITERATIONS) -> float:
    """Median of `iterations` launches, `scratch` overwritten before each so that the L2 cache holds none of the inputs.

    On a GPU as a CUDA graph: Python takes longer to launch most kernels than they take to run.
    """
    if scratch.device.type == "cpu":
        return _seconds_on_cpu(call)
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(iterations):
        scratch.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _seconds_on_cpu(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def make_scratch(device: torch.device) -> torch.Tensor:
    return torch.empty(1 if device.type == "cpu" else SCRATCH_BYTES, dtype=torch.uint8, device=device)


def copy_bandwidth(scratch: torch.Tensor, size: int) -> float:
    """Bytes read and written per second by the copy of `size` bytes."""
    source = torch.zeros(size, dtype=torch.uint8, device=scratch.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), scratch)


def matrix_rate(scratch: torch.Tensor) -> float:
    """Floating-point operations per second of a large bfloat16 product of random numbers."""
    size = 64 if scratch.device.type == "cpu" else MATRIX
    left, right = (torch.randn(size, size, device=scratch.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right, scratch)
