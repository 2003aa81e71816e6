"""python -m benchmarks.gpu_bench: kernels and engine on a GPU, beside ceilings of the same run.

Ceilings: the bandwidth of a large copy, and for the engine the time that its weights and KV would take to be read at
that bandwidth. Medians of ITERATIONS launches, the L2 cache overwritten before each. Exit 2: no GPU.
Not here yet: CUDA graphs, overlap, transformers' generate_batch beside ours.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_results import require_gpu, write
from engine.config import EngineConfig
from engine.kernels import attention, quantized_product, rms_norm, rotate_store, silu_mul
from engine.kernels import torch_operations as twin
from engine.kernels.reference import PagedTensor
from engine.layers.attention import RaggedBatch
from engine.layers.norm import RMSNorm
from engine.layers.quantization import quantize_int4, quantize_int8
from engine.layers.ragged import ragged_layout
from engine.memory import page_bytes
from engine.model_runner import load_engine
from engine.models.config import ModelConfig, read_model_config
from engine.models.size import weight_bytes
from engine.sequence import SamplingParams
from tests.engine.kernels.paged import make_spans

ITERATIONS = 30
HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 32, 8, 128, 16
TARGETS = {"bfloat16": 0.88, "fp8_e4m3": 0.80, "int8": 0.80, "int4": 0.65}
"""Share of the copy bandwidth at 8k tokens and more."""
_COMMON = {"rms_norm_eps": 1e-6, "head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 40_960}
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": {
        **_COMMON, "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "tie_word_embeddings": True, "rope_theta": 1e6,
    },
    "Llama-3.2-1B": {
        **_COMMON, "model_type": "llama", "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64, "tie_word_embeddings": True,
        "rope_theta": 5e5,
    },
    "Llama-3-8B": {
        **_COMMON, "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False, "rope_theta": 5e5,
    },
}  # fmt: skip


def seconds(call: Callable[[], object], scratch: torch.Tensor) -> float:
    """Median time on the GPU, as a CUDA graph: Python takes longer to launch most kernels than they take to run."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(ITERATIONS):
        scratch.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copy_bandwidth(device: torch.device, scratch: torch.Tensor) -> float:
    """Bytes read and written per second by the copy of 1 GiB."""
    source = torch.zeros(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), scratch)


def decode_step(
    dtype: str, sequences: int, tokens: int, device: torch.device
) -> tuple[PagedTensor, PagedTensor, RaggedBatch]:
    """Random pages in random order, and one query row for each of `sequences` with `tokens` keys."""
    pages = sequences * -(-tokens // BLOCK_SIZE)
    spans = make_spans([(1, tokens)] * sequences, BLOCK_SIZE, pages, {})
    paged = []
    for _ in range(2):
        tensor = PagedTensor.empty(dtype, pages, BLOCK_SIZE, KV_HEADS, HEAD_DIM, device)
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


def attention_rows(device: torch.device, scratch: torch.Tensor, bandwidth: float) -> list[dict[str, Any]]:
    rows = []
    for dtype, target in TARGETS.items():
        for sequences, tokens in ((1, 8192), (1, 32_768), (16, 8192), (64, 1024), (64, 8192), (256, 1024)):
            keys, values, batch = decode_step(dtype, sequences, tokens, device)
            query = torch.randn(sequences, HEADS, HEAD_DIM, device=device, dtype=torch.bfloat16)
            run = lambda q=query, k=keys, v=values, b=batch: attention.paged_attention(q, k, v, b, 0.088)  # noqa: E731
            took = seconds(run, scratch)
            rate = 2 * page_bytes(dtype, 1, KV_HEADS, HEAD_DIM) * sequences * tokens / took
            wanted = target if tokens >= 8192 else None
            name = f"decode attention, {dtype}, {sequences} x {tokens}"
            rows.append({"bench": name, "us": took * 1e6, "GB/s": rate / 1e9, "of copy": rate / bandwidth})
            rows[-1]["target"] = wanted
            del keys, values, batch, run
    return rows


def small_rows(batch: int, device: torch.device, scratch: torch.Tensor, bandwidth: float) -> list[dict[str, Any]]:
    """Fused kernels beside torch at Llama-3-8B's widths: `beside` is torch's time over ours."""
    options: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    x, delta = (torch.randn(batch, 4096, **options) for _ in range(2))
    norm = RMSNorm(torch.ones(4096, **options), 1e-6)
    gate_up = torch.randn(batch, 28_672, **options)
    qkv = torch.randn(batch, HEADS + 2 * KV_HEADS, HEAD_DIM, **options)
    angles = (torch.ones(batch, 1, HEAD_DIM, **options),) * 2
    slots = torch.arange(batch, device=device)
    pages = [PagedTensor.empty("int8", 64, BLOCK_SIZE, KV_HEADS, HEAD_DIM, device) for _ in range(2)]
    dense = torch.randn(4096, 4096, **options) * 0.02
    int8, int4 = quantize_int8(dense), quantize_int4(dense, 64)
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object], list[torch.Tensor]]] = {
        "residual + norm": (
            lambda: rms_norm.add_rms_norm(x, delta, norm.weight, 1e-6), lambda: twin.add_norm(x, delta, norm), []
        ),
        "SiLU x up": (lambda: silu_mul.silu_mul(gate_up), lambda: twin.silu_mul(gate_up), []),
        "rotate + store int8": (
            lambda: rotate_store.rotate_and_store(qkv, angles, slots, None, *pages),
            lambda: twin.rotate_and_store(qkv, angles, slots, None, *pages), [],
        ),
        "int8 product 4096 x 4096 beside bfloat16": (
            lambda: quantized_product.quantized_product(x, int8), lambda: F.linear(x, dense), int8.tensors()
        ),
        "int4 product 4096 x 4096 beside bfloat16": (
            lambda: quantized_product.quantized_product(x, int4), lambda: F.linear(x, dense), int4.tensors()
        ),
    }  # fmt: skip
    rows = []
    for name, (ours, theirs, weights) in pairs.items():
        took, other = seconds(ours, scratch), seconds(theirs, scratch)
        row = {"bench": f"{name}, {batch} rows", "us": took * 1e6, "torch us": other * 1e6, "beside": other / took}
        if weights:
            rate = sum(tensor.nbytes for tensor in weights) / took
            row |= {"GB/s": rate / 1e9, "of copy": rate / bandwidth}
        rows.append(row)
    return rows


def usual_load() -> list[tuple[list[int], int]]:
    """256 prompts of 100 to 1,024 tokens, as many to answer, seed 0: 133,966 output tokens (nano-vllm's bench.py)."""
    generator = random.Random(0)
    prompts = [[generator.randint(0, 10_000) for _ in range(generator.randint(100, 1024))] for _ in range(256)]
    return [(prompt, generator.randint(100, 1024)) for prompt in prompts]


def bytes_to_read(shape: ModelConfig, load: list[tuple[list[int], int]], weights: int) -> int:
    """Of weights and KV in bfloat16 when all sequences decode together: the least a run can read."""
    per_token = 2 * shape.layers * page_bytes("bfloat16", 1, shape.kv_heads, shape.head_dim)
    kv = sum(len(prompt) * output + output * (output + 1) // 2 for prompt, output in load) * per_token
    return max(output for _, output in load) * weights + kv


def engine_row(name: str, load: list[tuple[list[int], int]], bandwidth: float, **changes: Any) -> dict[str, Any]:
    """Output tokens per second of random weights of that shape, and the share of the byte roofline."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(SHAPES[name]))
        settings: dict[str, Any] = {
            "model": directory, "device": "cuda", "load_format": "dummy", "max_model_len": 4096,
            "max_num_seqs": len(load), "max_num_batched_tokens": 16_384, "kv_cache_memory_bytes": 42 * 2**30,
        }  # fmt: skip
        shape = read_model_config(Path(directory))
        engine = load_engine(EngineConfig(**settings | changes))
    weights = weight_bytes(shape, "bfloat16", "auto", 64, on_cpu=False)
    engine.add("warm", load[0][0], SamplingParams(max_tokens=8, ignore_eos=True))
    while engine.has_work():
        engine.step()
    for index, (prompt, output) in enumerate(load):
        engine.add(str(index), prompt, SamplingParams(max_tokens=output, ignore_eos=True))
    torch.cuda.synchronize()
    start = time.perf_counter()
    produced = 0
    while engine.has_work():
        produced += sum(len(result.tokens) for result in engine.step())
    took = time.perf_counter() - start
    ideal = bytes_to_read(shape, load, weights) / bandwidth
    return {"bench": f"engine, {name}, {len(load)} sequences {changes or ''}".strip(), "s": took,
            "tokens/s": produced / took, "of roofline": ideal / took}  # fmt: skip


def main() -> int:
    device = require_gpu("gpu-bench")
    scratch = torch.empty(2**28, dtype=torch.uint8, device=device)
    bandwidth = copy_bandwidth(device, scratch)
    rows: list[dict[str, Any]] = [{"bench": "copy of 1 GiB", "GB/s": bandwidth / 1e9}]
    rows += attention_rows(device, scratch, bandwidth)
    for batch in (1, 16, 64, 512):
        rows += small_rows(batch, device, scratch, bandwidth)
    single = [(usual_load()[0][0][:128], 256)]
    for name in SHAPES:
        rows.append(engine_row(name, single, bandwidth))
    rows.append(engine_row("Qwen3-0.6B", usual_load(), bandwidth))
    rows.append(engine_row("Qwen3-0.6B", usual_load(), bandwidth, attention_backend="torch"))
    rows.append(engine_row("Llama-3-8B", usual_load(), bandwidth))
    table = write("gpu-bench", rows)
    print(table.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
