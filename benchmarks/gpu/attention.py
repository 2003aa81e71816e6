"""Decode attention beside the copy bandwidth: bytes of keys, values and scales read per second of a launch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.ceilings import copy_bandwidth, seconds
from benchmarks.gpu.rows import Row, at_least
from engine.kernels import attention
from engine.kernels.reference import PagedTensor
from engine.layers.attention import RaggedBatch
from engine.layers.ragged import ragged_layout
from engine.memory import page_bytes
from tests.engine.kernels.paged import make_spans

BLOCK_SIZE = 16
TARGETS = {"bfloat16": 0.88, "fp8_e4m3": 0.80, "int8": 0.80, "int4": 0.65}
"""Share of the copy bandwidth from LONG tokens of context on."""
LONG = 8192


def attention_rows(bench: Bench) -> Iterator[Row]:
    heads, kv_heads, head_dim = bench.sizes.attention_heads
    for sequences, tokens in bench.sizes.attention:
        for dtype, target in TARGETS.items():
            keys, values, batch = decode_step(dtype, sequences, tokens, (kv_heads, head_dim), bench.device)
            query = torch.randn(sequences, heads, head_dim, device=bench.device, dtype=torch.bfloat16)
            run = lambda q=query, k=keys, v=values, b=batch: attention.paged_attention(q, k, v, b, 0.088)  # noqa: E731
            took = seconds(run, bench.scratch)
            read = 2 * page_bytes(dtype, 1, kv_heads, head_dim) * sequences * tokens
            alike = copy_bandwidth(bench.scratch, read // 2)
            yield Row(
                f"decode attention, {dtype}, {sequences} x {tokens} tokens",
                read / took / bench.bandwidth,
                "of copy bandwidth",
                at_least(target) if tokens >= LONG else None,
                bench.ceiling,
                {"us": took * 1e6, "GB/s": read / took / 1e9, "of a copy of as many bytes": read / took / alike},
            )
            del keys, values, batch, run


def decode_step(
    dtype: str, sequences: int, tokens: int, heads: tuple[int, int], device: torch.device
) -> tuple[PagedTensor, PagedTensor, RaggedBatch]:
    """Random pages in random order, and one query row for each of `sequences` with `tokens` keys.

    heads: KV heads and their size.
    """
    pages = sequences * -(-tokens // BLOCK_SIZE)
    spans = make_spans([(1, tokens)] * sequences, BLOCK_SIZE, pages, {})
    paged = []
    for _ in range(2):
        tensor = PagedTensor.empty(dtype, pages, BLOCK_SIZE, *heads, device)
        if tensor.data.is_floating_point():
            tensor.data.normal_()
        else:
            tensor.data.random_(0, 120)  # as e4m3: no NaN
        if tensor.scales is not None:
            tensor.scales.uniform_(0.01, 0.02)
        paged.append(tensor)
    ragged = ragged_layout(spans, BLOCK_SIZE, None, 0, device).ragged
    assert ragged is not None
    return paged[0], paged[1], ragged
