"""One sequence alone beside the copy bandwidth, and how long the GPU has nothing to do while it decodes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.rows import Row, Target, at_least, at_most
from benchmarks.gpu.runs import Request, drop, median_run, play, prompts
from benchmarks.gpu.shapes import kv_bytes, weights_read
from engine.llm_engine import LLMEngine
from engine.sequence import SamplingParams

TARGETS: dict[str, Target | None] = {"Llama-3.2-1B": at_least(0.75), "Qwen3-0.6B": None, "Llama-3-8B": None}
HANDOVER_S = 5e-6
"""Between two kernels of one graph lie one or two microseconds in which none runs (Megakernels: 1.3 on an H100). In
longer gaps the GPU waits for the CPU."""


def single_rows(bench: Bench) -> Iterator[Row]:
    for model, target in TARGETS.items():
        yield _single_row(bench, model, target)
    yield from idle_rows(bench, "Llama-3-8B")


def _single_row(bench: Bench, model: str, target: Target | None) -> Row:
    """The share is of the median step: what it must read, by the copy bandwidth, over what it took."""
    shape, engine = bench.config(model), bench.engine(model, max_num_seqs=1)
    requests = [Request(prompts(1, bench.sizes.prompt)[0], bench.sizes.answer)]
    play(engine, requests)
    took = statistics.median(median_run(engine, requests, bench.sizes.repeats).decode_gaps())
    read = weights_read(shape) + (bench.sizes.prompt + bench.sizes.answer // 2) * kv_bytes(shape)
    details = {"ms a token": took * 1e3, "tokens/s": 1 / took, "GB a step": read / 1e9}
    share = read / took / bench.bandwidth
    return Row(f"{model}, batch 1", share, "of copy bandwidth", target, bench.ceiling, details)


def idle_rows(bench: Bench, model: str) -> Iterator[Row]:
    """Share of a profiled run of decode steps in which the GPU waits for the CPU.

    An upper bound: the profiler slows the CPU down. What lies between any two kernels is told beside it.
    """
    sequences, context, count = bench.sizes.idle
    engine = bench.engine(model, max_num_seqs=sequences)
    requests = [Request(prompt, 3 * count) for prompt in prompts(sequences, context)]
    step = statistics.median(median_run(engine, requests, 2).decode_gaps())
    kernels = profiled_steps(engine, requests, count, bench.device)
    kernels = kernels[len(kernels) // 10 :]  # the profiler's own start falls into the first step
    steps = 0.9 * count
    gaps, length = idle_gaps(kernels)
    name = f"{model}, {sequences} x {context} tokens: GPU waits for the CPU"
    details = {"no kernel runs": sum(gaps) / length, "kernels a step": len(kernels) / steps}
    details |= {"ms a step": step * 1e3, "ms a step, profiled": length / steps * 1e3}
    waiting = sum(gap for gap in gaps if gap > HANDOVER_S)
    yield Row(name, waiting / length, "of the run", at_most(0.01), "", details)


def profiled_steps(
    engine: LLMEngine, requests: list[Request], steps: int, device: torch.device
) -> list[tuple[float, float]]:
    """When each kernel of `steps` decode steps began and ended, in order. Raises RuntimeError if none is seen."""
    for index, request in enumerate(requests):
        engine.add(str(index), request.prompt, SamplingParams(max_tokens=request.output, ignore_eos=True))
    waiting = {str(index) for index in range(len(requests))}
    while waiting:
        waiting -= {output.request_id for output in engine.step()}
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            engine.step()
        if gpu:
            torch.cuda.synchronize()
    drop(engine, len(requests))
    kind = DeviceType.CUDA if gpu else DeviceType.CPU
    ranges = [event.time_range for event in profiler.events() or () if event.device_type == kind]
    if not ranges:
        raise RuntimeError("the profiler saw no kernel")
    return sorted((found.start / 1e6, found.end / 1e6) for found in ranges)


def idle_gaps(intervals: list[tuple[float, float]]) -> tuple[list[float], float]:
    """Seconds of each time that no interval covers, and from the first beginning to the last end. intervals: sorted."""
    gaps: list[float] = []
    first, end = intervals[0]
    for start, stop in intervals:
        if start > end:
            gaps.append(start - end)
        end = max(end, stop)
    return gaps, end - first
