"""Synthetic tables in the format of benchmarks/tables: a server in closed form, for the tests of the ruler."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

KNOBS: Mapping[str, tuple[Any, ...]] = {
    "num_speculative_tokens": (0, 1, 2),
    "kv_cache_dtype": ("auto", "bfloat16", "int8"),
    "kv_window": (None, 128, 256),
    "max_num_batched_tokens": (128, 512),
    "prefill_chunk_size": (None, 32, 128),
    "max_num_seqs": (8, 16, 32, 64),
}
LADDER = tuple(round(0.3 * 1.15**step, 4) for step in range(24))
RATE = 20.0
SLOPE = 3.0
"""Violation per unit of ln load."""
BYTES = {"auto": 4, "bfloat16": 2, "int8": 1}


def ln_capacity(knobs: Mapping[str, Any], ruggedness: float = 0.03) -> float:
    """ln of the time scale that the configuration just holds: memory binds the batch, chunks and drafts may help."""
    tokens = min(knobs["kv_window"] or 600, 600)
    running = min(knobs["max_num_seqs"], 120_000 / (BYTES[knobs["kv_cache_dtype"]] * tokens))
    found = 0.55 * math.log(running / 8) - (0.25 if running > 48 else 0.0)
    depth = knobs["num_speculative_tokens"]
    found += {0: 0.0, 1: 0.18, 2: 0.1}[depth] - 0.08 * depth * (running > 30)
    chunk = knobs["prefill_chunk_size"] or knobs["max_num_batched_tokens"]
    found += -0.15 * abs(math.log2(min(chunk, knobs["max_num_batched_tokens"]) / 128))
    found += {"auto": 0.0, "bfloat16": -0.04, "int8": -0.1}[knobs["kv_cache_dtype"]]
    return found + ruggedness * random.Random(json.dumps(knobs)).gauss(0, 1)


def replay(scale: float, capacity: float, noise: float = 0.0) -> dict[str, Any]:
    violation = max(min(SLOPE * (math.log(scale) - capacity) + noise, 4.0), -3.0)
    goodput = RATE * scale * (1.0 if violation <= 0 else max(1 - violation, 0.1))
    constraints = {"slo:chat": round(violation, 5), "slo:docs": round(violation - 0.4, 5)}
    seconds = 72 / RATE / scale * (0.5 if violation > 1 else 1.0) + 0.2
    return {
        "goodput": goodput, "constraints": constraints, "tail": 0.15 * math.exp(violation), "seconds": seconds,
        "stopped": violation > 1,
    }  # fmt: skip


def configurations(knobs: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(knobs, values, strict=True)) for values in itertools.product(*knobs.values())]


def write_table(
    directory: Path, mix: str = "synthetic", knobs: Mapping[str, Sequence[Any]] = KNOBS, noise: float = 0.1
) -> Path:
    """A table of all configurations and the quality beside it. int8 under a window of 128 crashes."""
    draw = random.Random(0)
    header = {
        "environment": {}, "mix": mix, "space": {name: list(values) for name, values in knobs.items()},
        "baseline": {name: values[0] for name, values in knobs.items()} | {"max_num_seqs": 16},
        "slos": {}, "rate": RATE, "ladder": LADDER, "created": "2026-01-01",
    }  # fmt: skip
    lines = [header]
    for one in configurations(knobs):
        capacity = ln_capacity(one)
        held = max(sum(math.log(scale) <= capacity for scale in LADDER) - 1, 0)
        crashes = one["kv_cache_dtype"] == "int8" and one["kv_window"] == 128
        rungs = {} if crashes else {str(rung): replay(LADDER[rung], capacity) for rung in (held, held + 1)}
        lines.append({"knobs": one, "rungs": rungs, "failure": "engine_crashed" if crashes else None})
        if not crashes and draw.random() < 0.03:
            results = [replay(LADDER[held], capacity, draw.gauss(0, noise)) for _ in range(5)]
            lines.append({"repeats": {"knobs": one, "rung": held, "results": results}})
    quality = [
        {
            "knobs": {"kv_cache_dtype": dtype, "kv_window": window},
            "quality": 1.0 - {"auto": 0, "bfloat16": 0.002, "int8": 0.01}[dtype] - (4.0 / window if window else 0),
            "constraints": {"quality:recall": 0.3 if window else -0.1, "quality:text": -0.02},
            "seconds": 2.0,
        }
        for dtype, window in itertools.product(knobs["kv_cache_dtype"], knobs["kv_window"])
    ]
    _write(directory / "quality.jsonl.gz", quality)
    _write(directory / f"{mix}.jsonl.gz", lines)
    return directory / f"{mix}.jsonl.gz"


def _write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
