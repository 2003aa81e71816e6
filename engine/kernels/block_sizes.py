"""Block sizes of the kernels from a table made by python -m benchmarks.gpu_tune: nothing is tuned while serving.

A row of block_sizes.json is a Case and the sizes found for it. Until a GPU has been measured they are set by hand after
vLLM's and SGLang's kernels.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import msgspec

from engine.layers.attention import RaggedBatch

DECODE_ROWS = 8
"""Query rows of a sequence up to which its keys are split among programs: decodes, and verification of 7 guesses."""
TABLE = Path(__file__).with_name("block_sizes.json")


class AttentionBlocks(msgspec.Struct, frozen=True):
    """tile: keys in one step of the loop. splits: programs that share the keys of a query block. rows: of queries times
    group in a program, at least 16."""

    tile: int
    splits: int
    warps: int
    stages: int
    rows: int


class Case(msgspec.Struct, frozen=True):
    """group: query heads per key/value head. dtype: of the pages. decode: at most DECODE_ROWS rows a sequence.

    tokens: of the longest sequence, by its pages.
    """

    head_dim: int
    group: int
    dtype: str
    decode: bool
    sequences: int
    tokens: int


class Row(msgspec.Struct, frozen=True):
    case: Case
    blocks: AttentionBlocks


def attention_blocks(head_dim: int, group: int, dtype: str, batch: RaggedBatch, block_size: int) -> AttentionBlocks:
    """Sizes of the measured case nearest to this one; shapes alone decide, so that a captured graph stays valid."""
    tokens = batch.tables.shape[1] * block_size
    case = Case(head_dim, group, dtype, batch.max_rows <= DECODE_ROWS, batch.num_sequences, tokens)
    return nearest(case)


@functools.lru_cache(maxsize=4096)
def nearest(case: Case) -> AttentionBlocks:
    """The row at the least distance: dtype and kind of step must agree, numbers count by the factor between them."""
    rows = [row for row in _rows() if (row.case.dtype, row.case.decode) == (case.dtype, case.decode)]
    assert rows, f"block_sizes.json has no row for {case.dtype}"
    return min(rows, key=lambda row: _distance(row.case, case)).blocks


def _distance(a: Case, b: Case) -> float:
    pairs: list[tuple[Any, Any, float]] = [
        (a.head_dim, b.head_dim, 4.0),
        (a.group, b.group, 1.0),
        (a.sequences, b.sequences, 2.0),
        (a.tokens, b.tokens, 2.0),
    ]
    return sum(weight * abs(math.log2(x / y)) for x, y, weight in pairs)


@functools.cache
def _rows() -> list[Row]:
    return msgspec.json.decode(TABLE.read_bytes(), type=list[Row])
