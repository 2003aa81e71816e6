"""How well the simulator foretells this machine, and how fast.

    python -m benchmarks.simulator engine [--configurations 12] [--profile profile.json]
    python -m benchmarks.simulator table --profile profile.json --table benchmarks/tables/assistant.jsonl.gz
    python -m benchmarks.simulator speed --profile profile.json

Takes a profile first, with the demo's traffic or the table's (or reads one).
engine: measures configurations of the demo's space on the real engine, none of which was profiled, and compares: mean
absolute percentage error of percentiles and goodput, rank correlations. The baseline's own replays tell how much slower
the machine is than its profile, and are not compared.
table: the same for the load that each configuration of a factorial table holds; the baseline's is the calibration.
speed: simulated replays and climbs a minute of one core's own time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from scipy.stats import spearmanr

from benchmarks import factorial
from benchmarks.search_smooth import fitted_capacities
from benchmarks.search_table import load_table
from engine.profile import Profile
from search_spaces.space import key
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


def against_table(plan: Plan, profile: Profile, path: Path, every: int) -> dict[str, Any]:
    """The load up to which each configuration of a table holds, simulated, in rungs of its ladder; against its cells as
    they were measured, and without their noise (search_smooth). `cells`: how far those two agree with one another,
    which is about what a forecast without error would reach against the cells."""
    table = load_table(path)
    cells = {name: in_rungs(value) for name, value in table.ln_capacities.items()}
    fitted = dict(zip(table.measured, map(in_rungs, fitted_capacities(table).tolist()), strict=True))
    ours = simulator_of(plan, profile)
    factor = fitted_factor(ours, plan, fitted[key(table.baseline)])
    slowed = ours.slower(factor)
    chosen = [knobs for knobs in table.configurations if key(knobs) in cells][::every]
    simulated = {key(knobs): simulated_rung(slowed, plan, knobs) for knobs in chosen}
    found: dict[str, Any] = {"slower": round(factor, 3), "configurations": len(chosen)}
    for name, wanted in {
        "all": chosen,
        "without speculation": [knobs for knobs in chosen if not knobs["num_speculative_tokens"]],
        "with speculation": [knobs for knobs in chosen if knobs["num_speculative_tokens"]],
    }.items():
        found[name] = {
            "as measured": agreement([cells[key(one)] for one in wanted], [simulated[key(one)] for one in wanted]),
            "without noise": agreement([fitted[key(one)] for one in wanted], [simulated[key(one)] for one in wanted]),
            "cells": agreement([cells[key(one)] for one in wanted], [fitted[key(one)] for one in wanted]),
        }
    return found


def in_rungs(ln_scale: float) -> float:
    """Between the rungs of the table's ladder, the lowest of which is 0."""
    first, second = factorial.LADDER[:2]
    return (ln_scale - math.log(first)) / math.log(second / first)


def agreement(measured: Sequence[float], simulated: Sequence[float]) -> dict[str, float]:
    apart = [ours - theirs for theirs, ours in zip(measured, simulated, strict=True)]
    return {
        "spearman": round(float(spearmanr(measured, simulated).statistic), 3),
        "within_a_rung": round(sum(abs(x) < 1 for x in apart) / len(apart), 3),
        "rungs_too_high": round(statistics.fmean(apart), 2),
    }


def simulated_rung(simulator: Simulator, plan: Plan, knobs: Mapping[str, Any], first: int = 14) -> float:
    """Where the worst SLO would just be met, between rungs of the table's ladder."""
    ladder, found = factorial.LADDER, dict[int, float]()

    def holds(rung: int) -> bool:
        found[rung] = misses(simulator.replay(plan.config(knobs), plan.load("tune", ladder[rung])), plan.slos)
        return found[rung] <= 0

    rung = first
    while 0 <= rung < len(ladder) and rung not in found:
        rung += 1 if holds(rung) else -1
    best = max((rung for rung, violation in found.items() if violation <= 0), default=-1)
    missed = found.get(best + 1)
    return best if missed is None or best < 0 else best + found[best] / (found[best] - missed)


def fitted_factor(simulator: Simulator, plan: Plan, rung: float) -> float:
    """How much slower than its profile the machine was where the baseline holds this rung."""
    low, high = 0.25, 4.0
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        above = simulated_rung(simulator.slower(middle), plan, plan.baseline) > rung
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
        plan = demo_plan() if args.table is None else factorial.plan_of(load_table(args.table).mix, Path(scratch))
        if args.profile is not None and args.profile.exists():
            profile = msgspec.json.decode(args.profile.read_bytes(), type=Profile)
        else:
            profile = measure_profile(plan, Path(scratch))
            if args.profile is not None:
                args.profile.write_bytes(msgspec.json.encode(profile))
        if args.part == "engine":
            found = against_engine(plan, profile, args.configurations, Path(scratch))
        elif args.part == "table":
            found = against_table(plan, profile, args.table, args.every)
        elif args.part == "speed":
            found = speed(profile)
        else:
            found = {name: [model.error, model.samples] for name, model in profile.models.items()}
    print(json.dumps({"environment": environment(), args.part: found}))


if __name__ == "__main__":
    main()
