"""What a configuration takes, by arithmetic: bytes of weights and pages, tokens and sequences that fit. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config import EngineConfig
from engine.kv_cache import BlockManager, narrower
from engine.models.config import ModelConfig, read_model_config
from engine.models.size import weight_bytes

BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "fp8_e4m3": 8, "int8": 8, "int4": 4}
"""Bits of one stored key or value."""
SCALED = ("fp8_e4m3", "int8", "int4")
"""KV dtypes that keep a float32 scale per token and head."""
_SCALE_BYTES = 4


class DoesNotFit(ValueError):
    """One line: what is needed, and what there is."""


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """kv_dtype: as stored. page_bytes: one page of all layers, keys, values and scales, the draft model's included."""

    kv_dtype: str
    page_bytes: int
    pages: int

    @property
    def pool_bytes(self) -> int:
        return self.page_bytes * self.pages

    def check(self, available: int) -> None:
        """Raises DoesNotFit when `available` bytes do not hold the pool."""
        if self.pool_bytes > available:
            raise DoesNotFit(f"kv_cache_memory_bytes: the pages need {self.pool_bytes} bytes, there are {available}")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes, and what they hold. tokens: in all pages together. sequences: of max_model_len tokens at once; one of them
    takes up to sequence_bytes of pages.

    Not counted: the interpreter, activations and logits of a step.
    """

    weight_bytes: int
    draft_weight_bytes: int
    pool: PoolPlan
    tokens: int
    sequences: int
    sequence_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.draft_weight_bytes + self.pool.pool_bytes

    def check(self, available: int) -> None:
        """Raises DoesNotFit when the configuration needs more than `available` bytes."""
        if self.total_bytes > available:
            raise DoesNotFit(
                f"memory: needs {self.total_bytes} bytes (weights {self.weight_bytes}, draft "
                f"{self.draft_weight_bytes}, pages {self.pool.pool_bytes}), there are {available}"
            )


def plan_memory(config: EngineConfig, compute_dtype: str = "float32") -> MemoryPlan:
    """The plan of `config` from its checkpoints' config.json alone. compute_dtype: what dtype "auto" becomes.

    Raises ValueError for a config.json that cannot be read or served, DoesNotFit for a pool that holds no page.
    """
    dtype = compute_dtype if config.dtype == "auto" else config.dtype
    precision = (dtype, config.weight_dtype, config.weight_group_size, config.device != "cuda")
    shapes = [read_model_config(Path(config.model))]
    draft_bytes = 0
    if config.draft_model is not None:
        draft = read_model_config(Path(config.draft_model))
        draft_bytes = weight_bytes(draft, *precision)
        if config.uses_draft_model:
            shapes.append(draft)
    pool = plan_pool(config, shapes, dtype)
    longest = config.max_model_len or min(shape.max_positions for shape in shapes)
    visible = narrower(config.kv_window, config.kv_sink_tokens, shapes[0].window)
    chunk = min(config.prefill_chunk_size or config.max_num_batched_tokens, config.max_num_batched_tokens)
    blocks = BlockManager(0, config.block_size, *visible, heavy_tokens=config.kv_heavy_tokens)
    most = blocks.peak_blocks(longest, chunk)
    return MemoryPlan(
        weight_bytes(shapes[0], *precision),
        draft_bytes,
        pool,
        pool.pages * config.block_size,
        pool.pages // most,
        most * pool.page_bytes,
    )


def plan_pool(config: EngineConfig, shapes: Sequence[ModelConfig], compute_dtype: str) -> PoolPlan:
    """The pages that kv_cache_memory_bytes buys. Raises DoesNotFit when it buys none, ValueError when the shape does
    not allow the dtype."""
    dtype = compute_dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    for shape in shapes:
        if dtype == "int4" and (shape.head_dim < 2 or shape.head_dim & (shape.head_dim - 1)):
            raise ValueError(f"kv_cache_dtype: int4 needs a head_dim that is a power of two, given {shape.head_dim}")
    page = sum(2 * s.layers * page_bytes(dtype, config.block_size, s.kv_heads, s.head_dim) for s in shapes)
    if (pages := config.kv_cache_memory_bytes // page) < 1:
        raise DoesNotFit(f"kv_cache_memory_bytes: {config.kv_cache_memory_bytes} holds no page; one takes {page} bytes")
    return PoolPlan(dtype, page, pages)


def page_bytes(dtype: str, block_size: int, heads: int, head_dim: int) -> int:
    """Bytes of one page of the keys (or of the values) of one layer, scales included."""
    return block_size * heads * (head_dim * BITS[dtype] // 8 + (_SCALE_BYTES if dtype in SCALED else 0))


def available_host_bytes() -> int:
    """Memory a process may still take: what the kernel calls available, and the container's limit if it has one."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except OSError:  # not Linux
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no cgroup v2 here, or "max": no limit
        return available
    return min(available, limit - used + int(stat["inactive_file"]))
