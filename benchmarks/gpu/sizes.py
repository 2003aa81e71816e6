"""How much each part computes: on a GPU (the defaults), and in a rehearsal on a CPU (REHEARSAL)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.shapes import SHAPES, TINY


@dataclass(frozen=True)
class Sizes:
    """Tokens unless said otherwise. copy_bytes: of the copy that is the ceiling. pool_bytes: of the KV cache.

    repeats: runs of which the median counts.
    attention: sequences and context of each decode step. fused_rows: rows of the small kernels.
    usual, usual_lengths: requests of the usual benchmark, and the bounds of prompt and output. transformers: settings
    of its ContinuousBatchingConfig, which by default takes what memory there is.
    answer: output of a batch whose steps are timed. idle: sequences, context and profiled steps of the idle share.
    stored, held: requests and tokens each of the FP8 comparison. shorts, short_prompt, short_gap_s, long_prompt: short
    requests, one every so many seconds, beside a long prompt. streams, stream_context, stalling_prompt,
    stalling_chunk: running streams beside a prompt that would stall them, and what of it a step may compute.
    guessed: output of the runs with speculation.
    """

    copy_bytes: int = 2**30
    pool_bytes: int = 42 * 2**30
    repeats: int = 3
    attention: tuple[tuple[int, int], ...] = ((64, 8192), (16, 8192), (1, 32_768), (1, 8192), (256, 1024), (64, 1024))
    attention_heads: tuple[int, int, int] = (32, 8, 128)
    fused_rows: tuple[int, ...] = (1, 16, 64, 512)
    fused_width: int = 4096
    usual: int = 256
    usual_lengths: tuple[int, int] = (100, 1024)
    transformers: dict[str, int] = field(default_factory=dict)
    prompt: int = 128
    answer: int = 256
    batches: tuple[int, ...] = (1, 32, 64, 16)
    idle: tuple[int, int, int] = (32, 2048, 50)
    stored: tuple[int, int] = (64, 800)
    held: int = 160
    guessed: int = 320
    shorts: int = 50
    short_prompt: int = 64
    short_gap_s: float = 0.01
    long_prompt: int = 10_000
    chunk: int = 512
    streams: int = 64
    stream_context: int = 2048
    stalling_prompt: int = 32_768
    stalling_chunk: int = 64
    tiny: bool = False

    def shape(self, name: str) -> dict[str, Any]:
        """config.json of a model that is measured."""
        return SHAPES[name] | (TINY if self.tiny else {})


REHEARSAL = Sizes(
    copy_bytes=2**20, pool_bytes=2**20, repeats=1, attention=((2, 20),), attention_heads=(2, 1, 16), fused_rows=(1,),
    fused_width=64, usual=3, usual_lengths=(3, 6), transformers={"num_blocks": 8, "max_batch_tokens": 64}, prompt=5,
    answer=6, batches=(1, 2), idle=(2, 8, 3), stored=(2, 32), held=4, guessed=12, shorts=3, short_prompt=4,
    short_gap_s=0.001, long_prompt=40, chunk=16, streams=2, stream_context=12, stalling_prompt=60, stalling_chunk=16,
    tiny=True,
)  # fmt: skip
