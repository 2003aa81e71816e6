"""Every configuration of a factorial, measured once on the real engine: the ruler of benchmarks/search.py.

    python -m benchmarks.factorial assistant|documents|quality [--out benchmarks/tables] [--core 0]

Of each configuration the highest time scale of LADDER is found at which the traffic holds its SLOs, and the next, at
which it misses, each replayed as a trial of a study is: open loop, over HTTP, hopeless replays stopped. Neighbours
differ in one knob, so the search for the one starts where the other's ended. Some configurations are replayed REPEATS
times more, for the noise. A line is written as soon as it is known, and a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tuner.early_stop import hopeless
from tuner.environment import environment
from tuner.errors import ServingError
from tuner.outcome import disqualifying_doubt, judge
from tuner.plan import Plan, make_plan
from tuner.scored import floor_of, score
from tuner.scoring.probes import ProbeRecord
from tuner.scoring.quality import quality_score
from tuner.serving import adapters
from tuner.serving.testbed import EngineSettings, LiveTestbed
from tuner.spec import parse_spec
from tuner.traffic.arrivals import gamma_renewal
from tuner.traffic.trace import Request, Trace
from tuner.traffic.trace_file import load_trace, save_trace

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "demo"
LADDER = tuple(round(0.3 * 1.15**step, 4) for step in range(24))
KNOBS: Mapping[str, tuple[Any, ...]] = {
    "num_speculative_tokens": (0, 1, 2),
    "kv_cache_dtype": ("auto", "bfloat16", "int8"),
    "kv_window": (None, 128, 256),
    "max_num_batched_tokens": (128, 512),
    "prefill_chunk_size": (None, 32, 128),
    "max_num_seqs": (8, 16, 32, 64),
}
"""Costly changes first, so that they are made seldom."""
REPEATED, REPEATS = 16, 4
FAR = 3
"""Rungs."""
LONGEST_ANSWER = 24


@dataclass(frozen=True, slots=True)
class Mix:
    """Traffic: `requests` of the demo's, a share of them documents of up to `longest` tokens, with Gamma gaps at `rate`
    requests/s."""

    documents: float
    longest: int
    rate: float
    cv: float
    requests: int
    slos: Mapping[str, Mapping[str, float]]


MIXES = {
    "assistant": Mix(
        documents=0.15, longest=700, rate=20.0, cv=1.2, requests=60,
        slos={"chat": {"ttft": 0.15, "tpot": 0.02, "attainment": 0.9}, "docs": {"ttft": 0.6, "attainment": 0.9}},
    ),
    "documents": Mix(
        documents=0.4, longest=450, rate=12.0, cv=1.0, requests=48,
        slos={"chat": {"ttft": 0.12, "tpot": 0.02, "attainment": 0.9}, "docs": {"ttft": 0.35, "attainment": 0.9}},
    ),
}  # fmt: skip


def traffic(mix: Mix, seed: int = 0) -> Trace:
    """The demo's own requests at other times; answers cut to LONGEST_ANSWER tokens."""
    rng = np.random.default_rng(seed)
    recorded = load_trace(DEMO / "trace.jsonl").requests
    pools: dict[bool, list[Request]] = {False: [], True: []}
    for request in recorded:
        if (request.prompt_tokens or 0) <= mix.longest:
            pools[request.slo_class == "docs"].append(request)
    arrivals = gamma_renewal(mix.rate, mix.cv, 3 * mix.requests / mix.rate, rng)[: mix.requests]
    requests = []
    for index, arrival in enumerate(arrivals.tolist()):
        pool = pools[bool(rng.random() < mix.documents)]
        drawn = pool[int(rng.integers(len(pool)))]
        length = min(drawn.output_tokens or LONGEST_ANSWER, LONGEST_ANSWER)
        requests.append(_at(drawn, f"r{index}", arrival, length))
    return Trace(tuple(requests), {"source": "benchmarks/factorial.py", "seed": seed}, float(arrivals[-1]) + 1e-3)


def _at(request: Request, name: str, arrival: float, length: int) -> Request:
    return Request(
        name, arrival, request.tenant, request.slo_class, request.prompt, length, request.endpoint,
        request.prompt_tokens, length,
    )  # fmt: skip


def plan_of(name: str, directory: Path) -> Plan:
    """The study that would tune for this mix, its trace written to `directory`."""
    mix = MIXES[name]
    save_trace(traffic(mix), directory / f"{name}.jsonl")
    values = {
        "name": name,
        "model": str(ROOT / "engine/mini/mini"),
        "draft_model": str(ROOT / "engine/mini/mini-draft"),
        "engine": {"settings": {"kv_cache_memory_bytes": 6_000_000}},
        "traffic": {"trace": f"{name}.jsonl", "drain_timeout": 2},
        "slos": {key: dict(bounds) for key, bounds in mix.slos.items()},
        "quality": {"probes": str(DEMO / "probes.jsonl"), "default_floor": {"max_nll_increase": 0.02}},
        "search_space": {
            "parameters": {knob: {"type": "choice", "choices": list(values)} for knob, values in KNOBS.items()}
        },
        "tail": {"slo_class": "chat", "metric": "ttft", "percentile": 95},
    }
    return make_plan(parse_spec(values, source=name, base=directory))


def configurations() -> list[dict[str, Any]]:
    """All of them, each differing from the one before in one knob, the last ones most often (reflected Gray code)."""
    found: list[dict[str, Any]] = [{}]
    for name, values in KNOBS.items():
        found = [
            {**knobs, name: value}
            for number, knobs in enumerate(found)
            for value in (values if number % 2 == 0 else reversed(values))
        ]
    return found


@dataclass(slots=True)
class Rig:
    """One engine process and the table that its measurements go to."""

    plan: Plan
    testbed: LiveTestbed
    table: Path

    def replay(self, knobs: Mapping[str, Any], rung: int) -> dict[str, Any]:
        """One replay at a rung, once more where the client lagged. Raises ServingError."""
        config, load = self.plan.config(knobs), self.plan.load("tune", LADDER[rung])
        for _ in range(3):
            start = time.monotonic()
            stop = hopeless(load.requests, self.plan.slos, load.time_scale)
            measured = self.testbed.measure(config, load, purpose="trial", probes=None, stop=stop)
            if disqualifying_doubt(self.plan, measured) is None:
                break
        told = judge(self.plan, measured, ())
        assert told.objectives is not None or told.state == "broken"
        scored = score(measured, (), self.plan.spec)
        return {
            "goodput": round(scored.objectives[0], 4),
            "constraints": {key: round(value, 5) for key, value in (told.constraints or scored.constraints).items()},
            "tail": round(scored.objectives[2], 5),
            "seconds": round(time.monotonic() - start, 3),
            "stopped": measured.stopped is not None,
        }

    def bracket(self, knobs: Mapping[str, Any], first: int) -> tuple[dict[int, Any], int]:
        """Replays at each rung that was tried, and the rung that holds, -1 for none.

        Neighbours are seldom far apart: where one is, the machine may have had a bad moment, and it is tried again.
        """
        tried, held = self._walk(knobs, first)
        if held > first - FAR:
            return tried, held
        again, held_again = self._walk(knobs, first)
        return (again, held_again) if held_again > held else (tried, held)

    def _walk(self, knobs: Mapping[str, Any], first: int) -> tuple[dict[int, Any], int]:
        """From `first` up or down to where it holds and the next misses."""
        tried: dict[int, Any] = {}
        rung = first
        while 0 <= rung < len(LADDER) and rung not in tried:
            tried[rung] = self.replay(knobs, rung)
            rung += 1 if holds(tried[rung]) else -1
        return tried, max((rung for rung, found in tried.items() if holds(found)), default=-1)

    def write(self, line: Mapping[str, Any]) -> None:
        with self.table.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def holds(found: Mapping[str, Any]) -> bool:
    return not found["stopped"] and all(value <= 0 for value in found["constraints"].values())


def measure(name: str, rig: Rig) -> None:
    """The whole table of a mix, or what of it is lacking."""
    lines = [json.loads(line) for line in rig.table.read_text("utf-8").splitlines()] if rig.table.exists() else []
    if not lines:
        rig.write(_header(name, rig.plan))
    done = {json.dumps(line["knobs"]): line for line in lines if "rungs" in line}
    first = 16
    for number, knobs in enumerate(configurations()):
        if (known := done.get(json.dumps(knobs))) is None:
            start = time.monotonic()
            try:
                tried, held = rig.bracket(knobs, first)
                line = {"knobs": knobs, "rungs": tried, "failure": None}
            except ServingError as error:
                line, held = {"knobs": knobs, "rungs": {}, "failure": error.reason}, -1
            rig.write({**line, "seconds": round(time.monotonic() - start, 2), "at": round(time.time())})
            print(
                f"{number + 1} held {held}, {len(line['rungs'])} replays, {time.monotonic() - start:.1f} s", flush=True
            )
        else:
            held = max((int(r) for r, found in known["rungs"].items() if holds(found)), default=-1)
        first = max(held, 0)
    _repeat(rig, sum("repeats" in line for line in lines))


def _repeat(rig: Rig, done: int) -> None:
    """Replays for the noise: configurations spread over the table, at the rung they held and the one they missed."""
    lines = [json.loads(line) for line in rig.table.read_text("utf-8").splitlines()]
    measured = [line for line in lines if line.get("rungs")]
    chosen = measured[:: max(len(measured) // REPEATED, 1)][:REPEATED]
    pairs = [(line["knobs"], int(rung)) for line in chosen for rung in sorted(line["rungs"], key=int)[-2:]]
    for knobs, rung in pairs[done:]:
        results = [rig.replay(knobs, rung) for _ in range(REPEATS)]
        rig.write({"repeats": {"knobs": knobs, "rung": rung, "results": results}, "at": round(time.time())})


def _header(name: str, plan: Plan) -> dict[str, Any]:
    trace = plan.windows["tune"]
    return {
        "environment": environment(), "mix": name, "space": KNOBS, "baseline": dict(plan.baseline),
        "slos": MIXES[name].slos, "rate": len(trace.requests) / trace.span, "ladder": LADDER,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def measure_quality(rig: Rig) -> None:
    """A line for each set of answers that the knobs can make."""
    reference = rig.testbed.answer(rig.plan.reference, rig.plan.probes)
    seen: set[str] = set()
    for knobs in configurations():
        config = rig.plan.config(knobs)
        if (key := adapters.quality_key(config)) not in seen:
            seen.add(key)
            rig.write(_quality(rig, knobs, reference))


def _quality(rig: Rig, knobs: Mapping[str, Any], reference: Sequence[ProbeRecord]) -> dict[str, Any]:

    start = time.monotonic()
    answers = rig.testbed.answer(rig.plan.config(knobs), rig.plan.probes)
    floors = {name: floor_of(rig.plan.spec, name) for name in sorted({record.slice for record in reference})}
    found = quality_score(reference, answers, floors)
    return {
        "knobs": {name: knobs[name] for name in ("kv_cache_dtype", "kv_window")},
        "quality": round(found.value, 6),
        "constraints": {f"quality:{one.name}": round(one.violation, 6) for one in found.slices},
        "seconds": round(time.monotonic() - start, 2),
    }


def main() -> None:
    """Measure one table; compressed when it is whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("mix", choices=(*MIXES, "quality"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "tables")
    parser.add_argument("--core", type=int, help="run the client and the engine on this core alone")
    args = parser.parse_args()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / f"{args.mix}.jsonl"
    with tempfile.TemporaryDirectory(prefix="factorial-") as directory:
        plan = plan_of("assistant" if args.mix == "quality" else args.mix, Path(directory))
        with LiveTestbed(EngineSettings(Path(directory) / "engine"), environment()) as testbed:
            rig = Rig(plan, testbed, table)
            measure_quality(rig) if args.mix == "quality" else measure(args.mix, rig)
    table.with_suffix(".jsonl.gz").write_bytes(gzip.compress(table.read_bytes(), mtime=0))
    table.unlink()


if __name__ == "__main__":
    main()
