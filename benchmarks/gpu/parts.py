"""The parts of the benchmark in the order in which they count, and the seconds that each may take.

Free of torch: the command that runs them needs only their names.
"""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """rows: module and generator function of Bench that measures. budget_s: with the start of its process."""

    rows: str
    budget_s: float


PARTS: dict[str, Part] = {
    "attention": Part("benchmarks.gpu.attention:attention_rows", 100),
    "usual-qwen": Part("benchmarks.gpu.usual:qwen_rows", 150),
    "usual-llama": Part("benchmarks.gpu.usual:llama_rows", 220),
    "single": Part("benchmarks.gpu.single:single_rows", 80),
    "tradeoffs": Part("benchmarks.gpu.tradeoffs:tradeoff_rows", 160),
    "speculation": Part("benchmarks.gpu.speculation:speculation_rows", 110),
    "latency": Part("benchmarks.gpu.latency:latency_rows", 110),
    "start": Part("benchmarks.gpu.start:start_rows", 110),
    "fused": Part("benchmarks.gpu.fused:fused_rows", 70),
}
"""The first four together and the last five together end within ten minutes."""
