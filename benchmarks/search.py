"""Every way to search against a measured table: what each knows after so many engine-seconds, and what it recommends.

    python -m benchmarks.search benchmarks/tables/MIX.jsonl.gz [--strategy ours ...] [--seeds 20] [--trials 60]

Replays studies on the table under the noise of its repeats; no engine. Every contender climbs the ladder alike and
ends with the same finals: only the proposals differ. Results of a strategy are merged into
benchmarks/results/search-MIX.json, and the table of all of them is written beside it as markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import mannwhitneyu, norm

from benchmarks.search_finals import Recommended, holds_out, true_feasible, with_finals, without_finals
from benchmarks.search_race import Race, race, regret
from benchmarks.search_smooth import smoothed
from benchmarks.search_strategies import contenders
from benchmarks.search_table import Table, load_table
from search_spaces.space import key

RESULTS = Path(__file__).parent / "results"
REACHED = 0.05
"""Regret that counts as having found the best."""
TIED = float(norm.ppf(0.975))
"""Standard errors of the difference of two recommendations' capacities, within which their finals could not have told
them apart: the least significant difference (Fisher, 1935), two-sided at 5 %."""
RANDOM_TRIALS = 250
"""Of the random contender, so that its time to the best is seen and not cut off."""
SEEDS, TRIALS = 20, 60
CHECKPOINTS = (25, TRIALS)


def run(table: Table, name: str, seeds: int, trials: int, startup: int) -> dict[str, Any]:
    """One strategy, all seeds: a list a figure, a number a seed."""
    make, start = contenders(startup)[name], time.monotonic()
    count = RANDOM_TRIALS if name == "random" else trials
    races = [race(table, make(table, seed), seed, count) for seed in range(seeds)]
    found: dict[str, Any] = {
        "trials": count,
        "seconds_to_best": [_seconds_to_best(one) for one in races],
        "trials_to_best": [_trials_to_best(one) for one in races],
        "spent": [one.steps[-1].seconds for one in races],
        "benchmark_seconds": round(time.monotonic() - start, 1),
    }
    for at in (point for point in CHECKPOINTS if point <= trials):
        steps = [one.steps[min(at, len(one.steps) - 1)] for one in races]
        found[f"at_{at}"] = {
            "seconds": [step.seconds for step in steps],
            "regret": [step.regret for step in steps],
            "hypervolume": [step.hypervolume for step in steps],
            "crashes": [step.crashes for step in steps],
            "finals": _recommended(table, [with_finals(one, at) for one in races]),
            "no_finals": _recommended(table, [without_finals(one, at) for one in races]),
        }
    return found


def _seconds_to_best(done: Race) -> float | None:
    """Engine-seconds until the incumbent's true regret is at most REACHED; None: not within the run."""
    return next((step.seconds for step in done.steps if step.regret <= REACHED), None)


def _trials_to_best(done: Race) -> int | None:
    return next((number for number, step in enumerate(done.steps) if step.regret <= REACHED), None)


def _recommended(table: Table, found: Sequence[Recommended]) -> dict[str, Any]:
    true = [table.halved.goodputs[key(one.knobs)] if one.knobs is not None else 0.0 for one in found]
    return {
        "regret": [regret(table, one.knobs) for one in found],
        "true_feasible": [true_feasible(table, one) for one in found],
        "held_out": [holds_out(table, one, seed) for seed, one in enumerate(found)],
        "optimism": [
            one.goodput / value - 1 if value > 0 else math.inf for one, value in zip(found, true, strict=True)
        ],
        "same_or_tied": max(([_tied(table, one, other) for other in found] for one in found), key=sum),
        "seconds": [one.seconds for one in found],
        "knobs": [key(one.knobs) if one.knobs is not None else None for one in found],
    }


def _tied(table: Table, one: Recommended, other: Recommended) -> bool:
    """Whether two studies recommend the same configuration, or feasible ones whose true capacities differ by less than
    their finals could have told."""
    if one.knobs is None or other.knobs is None:
        return one.knobs is other.knobs
    left, right = key(one.knobs), key(other.knobs)
    if left == right or not (table.goodputs[left] and table.goodputs[right]):
        return left == right
    return abs(table.ln_capacities[left] - table.ln_capacities[right]) <= TIED * math.hypot(one.error, other.error)


def exhaustive_seconds(table: Table) -> float:
    """What the table itself cost: each configuration to its own capacity, and the probes."""
    replays = sum(found.seconds for rungs in table.measured.values() for found in rungs.values())
    return replays + sum(found.seconds for _, found in table.qualities)


def one_at_a_time(table: Table) -> float:
    """True goodput of the baseline with each knob at the value that is best when the others are the baseline's."""
    best = {
        name: max(values, key=lambda value, name=name: table.goodputs[key({**table.baseline, name: value})])
        for name, values in table.choices.items()
    }
    return table.goodputs[key(best)]


def summary(table: Table, results: Mapping[str, Any], whole: float) -> list[str]:
    """The figures as a markdown table, medians over seeds. whole: engine-seconds of the exhaustive table."""
    best, default = max(table.goodputs.values()), table.goodputs[key(table.baseline)]
    random = results.get("random")
    lines = [
        f"## {table.mix}: {len(table.configurations)} configurations, "
        f"{sum(value > 0 for value in table.goodputs.values())} feasible, "
        f"{sum(value >= (1 - REACHED) * best for value in table.goodputs.values())} within 5 % of the best; "
        f"exhaustive {whole:.0f} engine-seconds; engine defaults: {default / best:.0%} of the best, the best value of "
        f"each knob by itself: {one_at_a_time(table) / best:.0%}",
        "",
        "| strategy | trials to 95 % | s to 95 % | vs random | p | regret @25 | HV @60 | crashes @60 | s @25 |"
        " feasible @25 | held out @25 | optimism @25 (p95) | same or tied @25 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        lines.append(_row(_labelled(name, found), found, found["at_25"]["finals"], random))
        if name == "ours":
            lines.append(_row("ours, no finals", found, found["at_25"]["no_finals"], random))
    return lines


def _labelled(name: str, found: Mapping[str, Any]) -> str:
    """With its seeds and trials where they are fewer than the usual ones."""
    seeds = len(found["trials_to_best"])
    return name if seeds >= SEEDS and found["trials"] >= TRIALS else f"{name} ({seeds} x {found['trials']})"


def _row(name: str, found: Mapping[str, Any], claimed: Mapping[str, Any], random: Mapping[str, Any] | None) -> str:
    seconds, at = _censored(found["seconds_to_best"]), found.get(f"at_{TRIALS}")
    ratio = p = "-"
    if random is not None and name != "random":
        theirs = _censored(random["seconds_to_best"])
        # Where random's median seed never got there, what it had spent by then is the least it would take.
        least = statistics.median(min(one, end) for one, end in zip(theirs, random["spent"], strict=True))
        more = "at least " if math.isinf(statistics.median(theirs)) else ""
        ratio = f"{more}{least / statistics.median(seconds):.1f}x" if math.isfinite(statistics.median(seconds)) else "-"
        p = f"{mannwhitneyu(seconds, theirs, alternative='less').pvalue:.1g}"
    reached = sum(value is not None for value in found["trials_to_best"])
    trials = statistics.median(value if value is not None else math.inf for value in found["trials_to_best"])
    optimism = sorted(_censored(claimed["optimism"]))
    cells = [
        name, f"{trials:.0f} ({reached}/{len(seconds)})", f"{statistics.median(seconds):.0f}", ratio, p,
        f"{statistics.median(claimed['regret']):.1%}", f"{statistics.median(at['hypervolume']):.3f}" if at else "-",
        f"{statistics.median(at['crashes']):.0f}" if at else "-", f"{statistics.median(claimed['seconds']):.0f}",
        _share(claimed["true_feasible"]), _share(claimed["held_out"]),
        f"{statistics.median(optimism):+.1%} ({optimism[min(int(0.95 * len(optimism)), len(optimism) - 1)]:+.1%})",
        _share(claimed["same_or_tied"]),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _censored(values: Sequence[float | None]) -> list[float]:
    """Never: later than everything; a claim of what serves nothing: larger than everything."""
    return [math.inf if value is None else value for value in values]


def _share(flags: Sequence[float]) -> str:
    return f"{sum(flags) / len(flags):.0%}"


def main() -> None:
    """Run the strategies asked for and write what is known of all."""
    names = list(contenders(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("table", type=Path)
    parser.add_argument("--strategy", action="append", choices=names)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--startup", type=int, default=5)
    parser.add_argument("--raw", action="store_true", help="every cell as it was measured, slow moments included")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    table = load_table(args.table) if args.raw else smoothed(load_table(args.table))
    path = args.out / f"search-{table.mix}{'-raw' if args.raw else ''}.json"
    known = json.loads(path.read_text()) if path.exists() else {"environment": table.environment, "results": {}}
    for name in args.strategy or names:
        known["results"][name] = run(table, name, args.seeds, args.trials, args.startup)
    whole = exhaustive_seconds(load_table(args.table))
    # Rounded before it is told, as what was written by an earlier run is.
    known["results"] = _rounded({name: known["results"][name] for name in names if name in known["results"]})
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known) + "\n")
    lines = summary(table, known["results"], whole)
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
