"""The field's known trade-offs on the bundled engine and the bundled models: direction and size.

    python -m benchmarks.tradeoffs [--part batch ...] [--rounds 3]

Prints tables in markdown. Each row stands beside the first of its table, which ran in the same rounds; the order
rotates from round to round, so that a slow moment does not fall on one setting. Figures are medians of rounds; ratios
are to the first row of the same round, with the least and the largest of all rounds. Requests enter the engine in this
process, by the clock: no network, no client.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.memory import plan_memory
from engine.model_runner import load_engine
from engine.sequence import SamplingParams
from tuner.environment import environment
from tuner.scoring.slo import smallest_bound

MINI = Path(__file__).parent.parent / "engine" / "mini"
VOCABULARY = 2048
SMALL_POOL = 2_400_000
"""Bytes of pages that hold three requests in full precision."""
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Job:
    """at: seconds from the start. prompt, output: tokens. tenant: for the fair policy, and to tell groups apart."""

    at: float
    prompt: int
    output: int
    tenant: str = "chat"


@dataclass(slots=True)
class Played:
    """times: seconds at which each token of each job came. running: most sequences at once. seconds: in all."""

    times: list[list[float]]
    running: int
    seconds: float


def play(engine: LLMEngine, jobs: Sequence[Job]) -> Played:
    """Every job at its time, or as soon after it as a step ends. Prompts are random token ids, the same each time."""
    generator = random.Random(0)
    prompts = [[generator.randrange(16, VOCABULARY) for _ in range(job.prompt)] for job in jobs]
    due = sorted(range(len(jobs)), key=lambda index: jobs[index].at)
    found, start = Played([[] for _ in jobs], 0, 0.0), time.perf_counter()
    while due or engine.has_work():
        now = time.perf_counter() - start
        if not engine.has_work() and due and jobs[due[0]].at > now:
            time.sleep(jobs[due[0]].at - now)
        while due and jobs[due[0]].at <= time.perf_counter() - start:
            job = jobs[index := due.pop(0)]
            params = SamplingParams(max_tokens=job.output, ignore_eos=True)
            engine.add(str(index), prompts[index], params, tenant=job.tenant)
        outputs = engine.step()
        now = time.perf_counter() - start
        found.running = max(found.running, engine.stats().running)
        for output in outputs:
            found.times[int(output.request_id)] += [now] * len(output.tokens)
    found.seconds = time.perf_counter() - start
    return found


def config(**settings: Any) -> EngineConfig:
    return EngineConfig(model=str(MINI / "mini"), **settings)


def measure(
    rows: dict[str, Callable[[], Figures]], rounds: int, title: str, ratios: Sequence[str], digits: dict[str, int]
) -> list[dict[str, Figures]]:
    """Print one table: a line a row, a column a figure, and for each of `ratios` the ratio to the first row."""
    names = list(rows)
    rows[names[0]]()  # The first run is slower: allocator and oneDNN warm up.
    found = []
    for turn in range(rounds):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        found.append({name: rows[name]() for name in order})
    figures = list(found[0][names[0]])
    print(f"\n{title}\n")
    print(f"| setting | {' | '.join(figures)} | {' | '.join(f'{figure}, ratio' for figure in ratios)} |")
    print("|---" * (1 + len(figures) + len(ratios)) + "|")
    for name in names:
        values = [f"{statistics.median(r[name][f] for r in found):.{digits.get(f, 1)}f}" for f in figures]
        cells = [_ratio([r[name][f] / r[names[0]][f] for r in found]) for f in ratios]
        print(f"| {name} | {' | '.join([*values, *cells])} |", flush=True)
    return found


def _ratio(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def tail(values: Sequence[float], share: float = 0.95) -> float:
    return smallest_bound(values, share)


def gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]


def batch(rounds: int) -> None:
    """64 chats, all there at once; the batch admits so many of them."""
    jobs = [Job(0.0, 60, 48) for _ in range(64)]

    def row(size: int) -> Callable[[], Figures]:
        engine = load_engine(config(max_num_seqs=size))

        def run() -> Figures:
            done = play(engine, jobs)
            between = [gap for times in done.times for gap in gaps(times)]
            return {"output tokens/s": 64 * 48 / done.seconds, "ITL p50 (ms)": 1e3 * tail(between, 0.5)}

        return run

    rows = {f"max_num_seqs {size}": row(size) for size in (1, 4, 16, 64)}
    measure(
        rows, rounds, "Batch up: throughput up, latency up", ("output tokens/s", "ITL p50 (ms)"), {"ITL p50 (ms)": 2}
    )


def chunk(rounds: int) -> None:
    """Eight chats decode while a prompt of 1,500 tokens comes every 0.7 s."""
    chats = [Job(0.0, 30, 400) for _ in range(8)]
    jobs = [*chats, *(Job(0.3 + 0.7 * i, 1500, 1, "docs") for i in range(4))]

    def row(size: int | None) -> Callable[[], Figures]:
        engine = load_engine(config(max_num_batched_tokens=2048, prefill_chunk_size=size))

        def run() -> Figures:
            done = play(engine, jobs)
            between = [gap for times in done.times[:8] for gap in gaps(times)]
            first = [done.times[i][0] - jobs[i].at for i in range(8, len(jobs))]
            return {
                "long TTFT p50 (ms)": 1e3 * tail(first, 0.5),
                "chat ITL p50 (ms)": 1e3 * tail(between, 0.5),
                "chat ITL max (ms)": 1e3 * max(between),
            }

        return run

    rows = {f"prefill_chunk_size {size or 'none'}": row(size) for size in (None, 512, 128, 32)}
    measure(rows, rounds, "Chunk size under long prompts", ("long TTFT p50 (ms)", "chat ITL max (ms)"), {})


def dtype(rounds: int) -> None:
    """Requests of 200 tokens that all want to run at once, in a small pool."""
    jobs = [Job(0.0, 168, 32) for _ in range(20)]

    def row(kind: str) -> Callable[[], Figures]:
        chosen = config(kv_cache_dtype=kind, kv_cache_memory_bytes=SMALL_POOL, max_num_seqs=64)
        engine = load_engine(chosen)

        def run() -> Figures:
            done = play(engine, jobs)
            return {
                "tokens that fit": float(plan_memory(chosen).tokens),
                "most at once": float(done.running),
                "output tokens/s": 20 * 32 / done.seconds,
            }

        return run

    kinds = ("auto", "bfloat16", "fp8_e4m3", "int8", "int4")
    rows = {f"kv_cache_dtype {kind}": row(kind) for kind in kinds}
    title = f"KV dtype against capacity, {SMALL_POOL:,} bytes of pages"
    measure(rows, rounds, title, ("tokens that fit", "output tokens/s"), {"tokens that fit": 0, "most at once": 0})


def head_of_line(rounds: int) -> None:
    """Chats come at random, eight a second; twice, eight prompts of 1,200 tokens come at once from another tenant."""
    generator = random.Random(1)
    chats = [Job(at, 30, 16) for at in sorted(generator.uniform(0.0, 5.0) for _ in range(40))]
    long = [Job(at, 1200, 8, "docs") for at in (1.0, 3.0) for _ in range(8)]
    behind = [i for i, job in enumerate(chats) if any(0 <= job.at - at <= 1.0 for at in (1.0, 3.0))]

    def row(jobs: Sequence[Job], **settings: Any) -> Callable[[], Figures]:
        engine = load_engine(config(max_num_seqs=64, **settings))

        def run() -> Figures:
            done = play(engine, jobs)
            first = [done.times[i][0] - jobs[i].at for i in behind]
            last = max((done.times[i][0] - jobs[i].at for i in range(len(chats), len(jobs))), default=0.0)
            return {
                "chat TTFT p50 (ms)": 1e3 * tail(first, 0.5),
                "chat TTFT p95 (ms)": 1e3 * tail(first),
                "last long TTFT (ms)": 1e3 * last,
            }

        return run

    everybody, whole = [*chats, *long], {"max_num_batched_tokens": 2048}
    chunks = {"prefill_chunk_size": 128, "max_num_batched_tokens": 256}
    rows = {
        "no long prompts": row(chats, **whole),
        "long prompts, whole": row(everybody, **whole),
        "in chunks of 128, budget 256": row(everybody, **chunks),
        "whole, fair": row(everybody, scheduling_policy="fair", **whole),
        "chunks and fair": row(everybody, scheduling_policy="fair", **chunks),
    }
    measure(rows, rounds, "Long prefill against chat TTFT", ("chat TTFT p50 (ms)", "chat TTFT p95 (ms)"), {})


def speculation(rounds: int) -> None:
    """Eight streams; guesses of the draft model stand with a chosen probability."""
    jobs = [Job(0.0, 30, 80) for _ in range(8)]
    chances = (0.0, 0.25, 0.5, 0.75, 1.0)

    def row(depth: int, chance: float | None) -> Callable[[], Figures]:
        draft = {"draft_model": str(MINI / "mini-draft"), "synthetic_acceptance": chance} if depth else {}
        engine = load_engine(config(num_speculative_tokens=depth, **draft))
        return lambda: {"TPOT (ms)": 1e3 * statistics.median(_pace(t) for t in play(engine, jobs).times)}

    rows = {"none": row(0, None)}
    rows |= {f"depth {depth}, acceptance {chance:g}": row(depth, chance) for depth in (1, 3) for chance in chances}
    found = measure(rows, rounds, "Speculation, eight streams", ("TPOT (ms)",), {"TPOT (ms)": 3})
    print("\n| depth | break-even measured | predicted from the cost at acceptance 0 |\n|---|---|---|")
    for depth in (1, 3):
        speeds = [
            statistics.median(
                r["none"]["TPOT (ms)"] / r[f"depth {depth}, acceptance {c:g}"]["TPOT (ms)"] for r in found
            )
            for c in chances
        ]
        print(f"| {depth} | {_crossing(chances, speeds)} | {_predicted(depth, 1 / speeds[0])} |")


def _pace(times: Sequence[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1)


def _crossing(chances: Sequence[float], speeds: Sequence[float]) -> str:
    """The acceptance at which speculation pays for itself, on the line between the measured ones."""
    if speeds[0] >= 1:
        return "below 0"
    for low, high, before, after in zip(chances, chances[1:], speeds, speeds[1:], strict=False):
        if before < 1 <= after:
            return f"{low + (high - low) * (1 - before) / (after - before):.2f}"
    return "above 1"


def _predicted(depth: int, cost: float) -> str:
    """Where 1 + a + ... + a^depth, the tokens of a step, equals what the step costs; cost: of a plain step."""
    for percent in range(101):
        if sum((percent / 100) ** i for i in range(depth + 1)) >= cost:
            return f"{percent / 100:.2f}"
    return "above 1"


PARTS = {"batch": batch, "chunk": chunk, "dtype": dtype, "head_of_line": head_of_line, "speculation": speculation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--part", action="append", choices=list(PARTS), help="repeatable; default all")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    machine = environment()
    print(f"{machine.get('cpu', 'unknown CPU')}, {arguments.rounds} rounds")
    for name in arguments.part or PARTS:
        PARTS[name](arguments.rounds)


if __name__ == "__main__":
    main()
