"""What cheaper serving costs in quality: `python -m benchmarks.quality_tradeoffs` prints three tables (Markdown).

A/A floors; storage and weight dtypes against KL, ΔNLL and flips by slice; windows against recall by needle depth and
length. All are scored through the serving path of one engine, against float32 with nothing evicted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.planted_faults import MINI, pool
from engine.mini import corpus, tokenizer
from engine.mini import probes as mini_probes
from tuner.scoring.agreement import recall_grid
from tuner.scoring.probes import Probe, ProbeRecord, against
from tuner.scoring.quality import Floor, quality_score
from tuner.serving.config import ServingConfig
from tuner.serving.testbed import EngineSettings, LiveTestbed

DTYPES: dict[str, dict[str, Any]] = {
    "again (A/A)": {},
    "KV bfloat16": {"kv_cache_dtype": "bfloat16"},
    "KV fp8_e4m3": {"kv_cache_dtype": "fp8_e4m3"},
    "KV int8": {"kv_cache_dtype": "int8"},
    "KV int4": {"kv_cache_dtype": "int4"},
    "weights int8": {"weight_dtype": "int8"},
    "weights int4": {"weight_dtype": "int4"},
    "all bfloat16": {"dtype": "bfloat16"},
}
WINDOWS: tuple[int | None, ...] = (None, 1024, 512, 256, 128)
LENGTHS = (300, 700, 1400)
EACH = 12
"""Recall probes of a length, their needles at any depth."""


def grid_probes() -> list[Probe]:
    """Recall probes of LENGTHS tokens."""
    tok = tokenizer.load(MINI)
    found = []
    for length in LENGTHS:
        for index in range(EACH):
            made = mini_probes.recall_probe(corpus.stream("tradeoffs", length, index), length, tok, early=1.0)
            found.append(Probe(**mini_probes.written(made, f"recall-{length}-{index}", tok)))
    return found


def config(knobs: dict[str, Any]) -> ServingConfig:
    return ServingConfig("bundled", {"model": str(MINI), "device": "cpu"}, knobs)


def dtype_rows(testbed: LiveTestbed) -> list[str]:
    """KL in nats per position / NLL increase in nats per token / flips in per cent, slice by slice."""
    probes = pool(1, 5)
    reference = testbed.answer(config({}), probes)
    asked = against(probes, reference)
    rows: list[str] = []
    for name, knobs in DTYPES.items():
        # In another order they meet other probes in their batches, so that A/A is more than the same program run twice.
        found = quality_score(reference, testbed.answer(config(knobs), asked[::-1]), _floors(reference))
        parts = [part for part in found.slices if part.kind == "forced"]
        kept = next(part.retention for part in found.slices if part.kind == "recall")
        if not rows:
            rows += [
                "| | " + " | ".join(p.name for p in parts) + " | recall kept | Q |",
                "|---" * (len(parts) + 3) + "|",
            ]
        cells = [f"{p.kl:.1e} / {p.nll_increase:+.4f} / {100 * (p.flips or 0):.1f}" for p in parts]
        rows.append(f"| {name} | " + " | ".join(cells) + f" | {kept:.3f} | {found.value:.4f} |")
    return rows


def window_rows(testbed: LiveTestbed) -> list[str]:
    """Right answers of all, by prompt length and, thirds of the prompt, the needle's depth."""
    probes = grid_probes()
    reference = testbed.answer(config({}), probes)
    rows: list[str] = []
    for window in WINDOWS:
        records = testbed.answer(config({"kv_window": window}), probes)
        cells = recall_grid(reference, records)
        if not rows:
            heads = [f"{cell.length}+ at {cell.depth:.2f}+" for cell in cells]
            rows += ["| window | " + " | ".join(heads) + " |", "|---" * (len(cells) + 1) + "|"]
        rows.append(f"| {window or 'none'} | " + " | ".join(f"{cell.right_b}/{cell.probes}" for cell in cells) + " |")
    return rows


def _floors(records: Sequence[ProbeRecord]) -> dict[str, Floor]:
    return {record.slice: Floor() for record in records}


def main() -> None:
    """Print the tables."""
    with (
        tempfile.TemporaryDirectory(prefix="tradeoffs-") as directory,
        LiveTestbed(EngineSettings(Path(directory)), {}) as testbed,
    ):
        print("\n".join(window_rows(testbed)), "\n")
        print("\n".join(dtype_rows(testbed)))


if __name__ == "__main__":
    main()
