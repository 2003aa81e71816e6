"""How well the simulator foretells this machine, and how fast.

    python -m benchmarks.simulator engine [--configurations 12] [--profile profile.json]
    python -m benchmarks.simulator table --profile profile.json --table benchmarks/tables/assistant.jsonl.gz
    python -m benchmarks.simulator speed --profile profile.json

engine: takes a profile with the demo's traffic (or reads one), measures configurations of the demo's space on the
real engine, none of which was profiled, and compares: mean absolute percentage error of percentiles and goodput, rank
correlations. The baseline's own replays tell how much slower the machine is than its profile, and are not compared.
table: the same for the load that each line of a factorial table holds; the baseline's line is the calibration.
speed: simulated replays and climbs a minute of one core's own time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from scipy.stats import spearmanr

from benchmarks import factorial
from engine.profile import Profile
from tuner.environment import environment
from tuner.plan import Plan, make_plan
from tuner.prediction import calibrated, capacity, misses
from tuner.profiling import plan_profile
from tuner.scoring.metrics import traffic_metrics
from tuner.screening import drawn
from tuner.serving.testbed import EngineSettings, LiveTestbed
from tuner.simulation import Simulator, prompt_tokens
from tuner.spec import load_spec
from tuner.traffic.trace import RequestRecord

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo" / "study.yaml"
SCALES = (1.6, 2.4)
"""About where the demo's configurations cease to hold their SLOs, and beyond."""
PERCENTILES = (50, 90, 95)
Figures = dict[str, float]


def demo_plan() -> Plan:
    return make_plan(load_spec(DEMO))


def simulator_of(plan: Plan, profile: Profile) -> Simulator:
    return Simulator(profile, prompt_tokens(plan.windows["tune"].requests, plan.spec.model))


def measure_profile(plan: Plan, directory: Path) -> Profile:
    start = time.monotonic()
    profile = plan_profile(EngineSettings(directory), plan)
    print(f"profile: {time.monotonic() - start:.0f} s", file=sys.stderr)
    return profile


def figures(plan: Plan, records: Sequence[RequestRecord], duration: float) -> Figures:
    """Goodput, and percentiles of the latencies of each class."""
    scored = traffic_metrics(records, plan.slos, duration)
    found = {"goodput": scored.goodput.value}
    for name, group in scored.classes.items():
        for metric in ("ttft", "tpot", "e2e"):
            for rank in PERCENTILES:
                if rank in group.percentiles.get(metric, {}):
                    found[f"{metric} p{rank} {name}"] = group.percentiles[metric][rank]
    return found


def against_engine(plan: Plan, profile: Profile, count: int, directory: Path) -> dict[str, Any]:
    """Measure the baseline and `count` other configurations at SCALES, and simulate them."""
    ours = simulator_of(plan, profile)
    rows: list[tuple[float, Figures, Figures]] = []
    with LiveTestbed(EngineSettings(directory), environment()) as testbed:

        def measured(knobs: dict[str, Any], scale: float) -> Sequence[RequestRecord]:
            config, load = plan.config(knobs), plan.load("tune", scale)
            return testbed.measure(config, load, purpose="trial", probes=None, stop=None).records

        base = [(plan.config(plan.baseline), plan.load("tune", s), measured(dict(plan.baseline), s)) for s in SCALES]
        factor = calibrated(ours, base)
        slowed = ours.slower(factor)
        for knobs in drawn(plan.space, plan.baseline, seed=1, count=200)[-count:]:
            for scale in SCALES:
                load = plan.load("tune", scale)
                real = figures(plan, measured(knobs, scale), load.duration)
                simulated = slowed.replay(plan.config(knobs), load)
                rows.append((scale, real, figures(plan, simulated.records, simulated.duration)))
                print(f"{knobs} x{scale}: goodput {rows[-1][2]['goodput']:.1f}, measured {real['goodput']:.1f}",
                      file=sys.stderr)  # fmt: skip
    return {"slower": round(factor, 3), "mape": errors(rows), "spearman": ranks(rows)}


def errors(rows: Sequence[tuple[float, Figures, Figures]]) -> dict[str, float]:
    """Mean absolute error by figure, classes together, as a share of what was measured."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for _, real, simulated in rows:
        for name in real.keys() & simulated.keys():
            if real[name]:
                found[" ".join(name.split()[:2])].append(abs(simulated[name] / real[name] - 1))
    return {name: round(statistics.fmean(found[name]), 3) for name in sorted(found)}


def ranks(rows: Sequence[tuple[float, Figures, Figures]]) -> dict[str, float]:
    """Spearman's rank correlation of configurations at the same load."""
    found = {}
    for scale in sorted({row[0] for row in rows}):
        same = [(real, simulated) for at, real, simulated in rows if at == scale]
        for name in ("goodput", "ttft p95 chat", "tpot p95 chat", "e2e p50 chat"):
            pairs = [(real[name], simulated[name]) for real, simulated in same if name in real and name in simulated]
            found[f"{name} x{scale:g}"] = round(float(spearmanr(*zip(*pairs, strict=True)).statistic), 3)
    return found


def against_table(profile: Profile, path: Path, every: int) -> dict[str, Any]:
    """The load that each measured configuration holds, simulated; in rungs of the table's ladder."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    header, *lines = [json.loads(line) for line in data.decode().splitlines()]
    with tempfile.TemporaryDirectory() as directory:
        plan = factorial.plan_of(header["mix"], Path(directory))
    measured = [line for line in lines if line.get("rungs")]
    baseline = next(line for line in measured if line["knobs"] == header["baseline"])
    ours = simulator_of(plan, profile)
    factor = fitted_factor(ours, plan, held(baseline))
    slowed = ours.slower(factor)
    rows = [(line["knobs"], held(line), simulated_rung(slowed, plan, line["knobs"])) for line in measured[::every]]
    found: dict[str, Any] = {"slower": round(factor, 3), "configurations": len(rows)}
    for name, chosen in {
        "all": rows,
        "without speculation": [row for row in rows if not row[0]["num_speculative_tokens"]],
        "with speculation": [row for row in rows if row[0]["num_speculative_tokens"]],
    }.items():
        if chosen:
            found[name] = agreement([row[1] for row in chosen], [row[2] for row in chosen])
    return found


def agreement(measured: Sequence[float], simulated: Sequence[float]) -> dict[str, float]:
    apart = [ours - theirs for theirs, ours in zip(measured, simulated, strict=True)]
    return {
        "spearman": round(float(spearmanr(measured, simulated).statistic), 3),
        "within_a_rung": round(sum(abs(x) < 1.5 for x in apart) / len(apart), 3),
        "rungs_too_high": round(statistics.fmean(apart), 2),
    }


def held(line: dict[str, Any]) -> int:
    return max((int(rung) for rung, found in line["rungs"].items() if factorial.holds(found)), default=-1)


def simulated_rung(simulator: Simulator, plan: Plan, knobs: dict[str, Any], first: int = 14) -> float:
    """Where the table's ladder would end, between rungs."""
    ladder, found = factorial.LADDER, dict[int, float]()

    def holds(rung: int) -> bool:
        found[rung] = misses(simulator.replay(plan.config(knobs), plan.load("tune", ladder[rung])), plan.slos)
        return found[rung] <= 0

    rung = first
    while 0 <= rung < len(ladder) and rung not in found:
        rung += 1 if holds(rung) else -1
    best = max((rung for rung, violation in found.items() if violation <= 0), default=-1)
    missed = found.get(best + 1)
    return best if missed is None or best < 0 else best + found[best] / (found[best] - missed) - 0.5


def fitted_factor(simulator: Simulator, plan: Plan, rung: int) -> float:
    """How much slower than its profile the machine was when the baseline held this rung."""
    low, high = 0.25, 4.0
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        above = simulated_rung(simulator.slower(middle), plan, dict(plan.baseline)) > rung
        low, high = (middle, high) if above else (low, middle)
    return (low * high) ** 0.5


def speed(profile: Profile, count: int = 60) -> dict[str, Any]:
    """Replays and climbs a minute, of this process's own CPU time."""
    plan = demo_plan()
    simulator = simulator_of(plan, profile)
    chosen = drawn(plan.space, plan.baseline, seed=2, count=300)[-count:]
    start, replays = time.process_time(), 0
    for knobs in chosen:
        replays += capacity(simulator, plan.config(knobs), lambda s: plan.load("tune", s), plan.slos, SCALES[0]).replays
    seconds = time.process_time() - start
    one = simulator.replay(plan.config(plan.baseline), plan.load("tune", SCALES[0]))
    return {
        "replays_per_minute": round(60 * replays / seconds),
        "climbs_per_minute": round(60 * count / seconds),
        "requests": len(one.records),
        "steps_of_baseline": one.steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=("engine", "table", "speed", "profile"))
    parser.add_argument("--profile", type=Path, help="read here; written by parts engine and profile where missing")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--every", type=int, default=1, help="of a table, each so manieth line")
    parser.add_argument("--configurations", type=int, default=12)
    parser.add_argument("--core", type=int, help="run client and engine on this core alone")
    args = parser.parse_args()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    with tempfile.TemporaryDirectory(prefix="simulator-") as scratch:
        if args.profile is not None and args.profile.exists():
            profile = msgspec.json.decode(args.profile.read_bytes(), type=Profile)
        else:
            profile = measure_profile(demo_plan(), Path(scratch))
            if args.profile is not None:
                args.profile.write_bytes(msgspec.json.encode(profile))
        if args.part == "engine":
            found = against_engine(demo_plan(), profile, args.configurations, Path(scratch))
        elif args.part == "table":
            found = against_table(profile, args.table, args.every)
        elif args.part == "speed":
            found = speed(profile)
        else:
            found = {name: [model.error, model.samples] for name, model in profile.models.items()}
    print(json.dumps({"environment": environment(), args.part: found}))


if __name__ == "__main__":
    main()
