"""Are silent faults caught, and are clean configurations let through? `python -m benchmarks.planted_faults`.

A pool of documents is scored once per configuration through the serving path; then probe sets as large as the demo's
are drawn from it, and each is judged by the floors. rejected: share of draws in which some floor does not hold; for
clean configurations, the same one again among them, that is the share of false alarms. seconds: of one probe set,
a share of the engine's start included.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.faulty_engine import PLANTS
from engine.mini import probes as mini_probes
from engine.mini import tokenizer
from tuner.scoring.probes import Probe, ProbeRecord, against
from tuner.scoring.quality import Floor, quality_score
from tuner.serving.config import ServingConfig
from tuner.serving.testbed import EngineSettings, LiveTestbed

MINI = Path(__file__).parent.parent / "engine" / "mini" / "mini"
SET = {"forced": 8, "hard": 8, "recall": 32}
"""Probes of a slice in one probe set."""
LENGTHS = (550, 750)
"""Tokens of long prompts."""
CLEAN: dict[str, dict[str, Any]] = {
    "same again": {}, "bfloat16": {"kv_cache_dtype": "bfloat16"}, "int8": {"kv_cache_dtype": "int8"},
}  # fmt: skip
FAULTY: dict[str, dict[str, Any]] = {name: {} for name in PLANTS} | {"wrong_kv_scale": {"kv_cache_dtype": "int8"}}


def pool(times: int, seed: int) -> list[Probe]:
    """`times` probe sets."""
    made = mini_probes.generate(
        seed, SET["forced"] * times, SET["recall"] * times, LENGTHS, tokenizer.load(MINI), SET["hard"] * times
    )
    return [Probe(**values) for values in made]


def answers(knobs: dict[str, Any], probes: Sequence[Probe], fault: str | None = None) -> tuple[ProbeRecord, ...]:
    """What an engine with these settings, started for it, answers."""
    launcher = () if fault is None else (sys.executable, str(Path(__file__).with_name("faulty_engine.py")), fault)
    config = ServingConfig("bundled", {"model": str(MINI), "device": "cpu"}, knobs)
    with (
        tempfile.TemporaryDirectory(prefix="planted-") as directory,
        LiveTestbed(EngineSettings(Path(directory), launcher), {}) as testbed,
    ):
        return testbed.answer(config, probes)


def rejections(
    reference: Sequence[ProbeRecord], records: Sequence[ProbeRecord], floor: Floor, draws: int
) -> tuple[float, dict[str, float]]:
    """Share of drawn probe sets that miss some floor, and for each slice the share that misses its own."""
    by_slice: dict[str, list[int]] = {}
    for index, record in enumerate(reference):
        by_slice.setdefault(record.slice, []).append(index)
    missed, slices = 0, dict.fromkeys(by_slice, 0)
    for draw in range(draws):
        rng = random.Random(draw)
        kept = [i for name, members in by_slice.items() for i in rng.sample(members, _size(reference[members[0]]))]
        found = quality_score([reference[i] for i in kept], [records[i] for i in kept], dict.fromkeys(by_slice, floor))
        failed = [part.name for part in found.slices if part.violation > 0]
        missed += bool(failed)
        for name in failed:
            slices[name] += 1
    return missed / draws, {name: count / draws for name, count in slices.items() if count}


def _size(record: ProbeRecord) -> int:
    if record.kind == "recall":
        return SET["recall"]
    return {"rare": 2 * SET["hard"], "long": SET["hard"], "early": SET["hard"]}.get(record.slice, SET["forced"])


def measure(times: int = 3, draws: int = 200, seed: int = 11) -> list[dict[str, Any]]:
    """One row a configuration."""
    probes = [replace(probe, gate=1) for probe in pool(times, seed)]
    reference = answers({}, probes)
    asked = against(probes, reference)
    rows = []
    for name, knobs, fault in [(n, k, None) for n, k in CLEAN.items()] + [(n, k, n) for n, k in FAULTY.items()]:
        start = time.perf_counter()
        by_id = {record.probe_id: record for record in answers(knobs, asked[::-1], fault)}
        records = [by_id[record.probe_id] for record in reference]
        seconds = (time.perf_counter() - start) / times
        share, slices = rejections(reference, records, Floor(), draws)
        rows.append({
            "configuration": name, "planted": fault is not None, "rejected": share, "seconds": round(seconds, 1),
            "by_slice": slices,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    measure()
