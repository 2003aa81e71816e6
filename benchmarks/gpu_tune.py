"""python -m benchmarks.gpu_tune [--head-dim 128] [--group 4]: finds the block sizes of attention on this GPU.

Times every combination at every case of the shipped table's grid and writes the fastest into
engine/kernels/block_sizes.json, in place of what it said of the same cases. Exit 2: no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from unittest import mock

import msgspec
import torch
from triton.runtime.errors import OutOfResources

from benchmarks.gpu.attention import BLOCK_SIZE
from benchmarks.gpu.ceilings import make_scratch, seconds
from benchmarks.gpu_results import require_gpu
from engine.kernels import attention
from engine.kernels.block_sizes import DECODE_ROWS, TABLE, AttentionBlocks, Case, Row
from engine.kernels.reference import STORAGE_DTYPES, PagedTensor
from engine.layers.attention import RaggedBatch
from engine.layers.ragged import ragged_layout
from tests.engine.kernels.paged import make_spans

DECODES = [(1, 256), (1, 4096), (1, 32_768), (16, 256), (16, 4096), (64, 1024), (64, 8192), (256, 256), (256, 2048)]
PREFILLS = [(1, 512), (1, 4096), (8, 2048)]
PREFILL_ROWS = 512


def candidates(decode: bool) -> Iterator[AttentionBlocks]:
    splits = (1, 2, 4, 8, 16, 32, 64) if decode else (1,)
    rows = (16,) if decode else (32, 64, 128)
    for sizes in itertools.product((16, 32, 64, 128), splits, (2, 4, 8), (2, 3), rows):
        yield AttentionBlocks(*sizes)


def fastest(case: Case, kv_heads: int, device: torch.device, scratch: torch.Tensor) -> AttentionBlocks:
    keys, values, batch = _step(case, kv_heads, device)
    rows = int(batch.first_rows[-1])
    compute = {"float32": torch.float32, "float16": torch.float16}.get(case.dtype, torch.bfloat16)
    query = torch.randn(rows, kv_heads * case.group, case.head_dim, device=device, dtype=compute)
    times: dict[AttentionBlocks, float] = {}
    for blocks in candidates(case.decode):
        with mock.patch.object(attention, "attention_blocks", return_value=blocks):
            try:
                run = lambda: attention.paged_attention(query, keys, values, batch, 0.088)  # noqa: E731
                times[blocks] = seconds(run, scratch)
            except OutOfResources:  # more shared memory than a processor has
                continue
    return min(times, key=lambda blocks: times[blocks])


def _step(case: Case, kv_heads: int, device: torch.device) -> tuple[PagedTensor, PagedTensor, RaggedBatch]:
    pages = case.sequences * -(-case.tokens // BLOCK_SIZE)
    rows = 1 if case.decode else min(PREFILL_ROWS, case.tokens)
    assert (rows <= DECODE_ROWS) == case.decode
    spans = make_spans([(rows, case.tokens)] * case.sequences, BLOCK_SIZE, pages, {})
    keys, values = (PagedTensor.empty(case.dtype, pages, BLOCK_SIZE, kv_heads, case.head_dim, device) for _ in range(2))
    batch = ragged_layout(spans, BLOCK_SIZE, None, 0, device).ragged
    assert batch is not None
    return keys, values, batch


def main() -> int:
    device = require_gpu("gpu-tune")
    parser = argparse.ArgumentParser()
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=8)
    arguments = parser.parse_args()
    scratch = make_scratch(device)
    table = {row.case: row.blocks for row in msgspec.json.decode(TABLE.read_bytes(), type=list[Row])}
    for dtype in STORAGE_DTYPES:
        for decode, sizes in ((True, DECODES), (False, PREFILLS)):
            for sequences, tokens in sizes:
                case = Case(arguments.head_dim, arguments.group, dtype, decode, sequences, tokens)
                table[case] = fastest(case, arguments.kv_heads, device, scratch)
                print(case, table[case], flush=True)
    lines = [msgspec.json.encode(Row(case, blocks)).decode() for case, blocks in table.items()]
    TABLE.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
