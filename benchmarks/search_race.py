"""One study replayed on a table: the climb of every trial, what is spent, what is known after it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.search_strategies import Outcome, Strategy
from benchmarks.search_table import MAXIMIZE, Knobs, Quality, Replay, Table
from search_spaces.space import key
from tuner.answers import to_beat
from tuner.ladder import knee_of, next_look
from tuner.pareto import hypervolume

FLOOR_QUALITY = math.exp(-0.02)
"""Of answers that lose 0.02 nats a token, the default floor (tuner.spec.FloorSpec)."""
CRASH_SECONDS = 3.0
"""What a configuration that crashes costs: the start of a fresh engine."""


@dataclass(slots=True)
class Bench:
    """The engine of one study: replays under this seed's noise, and the clock. `noisy` False: the table as it is."""

    table: Table
    seed: int
    noisy: bool = True
    seconds: float = 0.0
    _asked: set[str] = field(default_factory=set)
    _count: int = 0

    def replay(self, knobs: Knobs, rung: int) -> Replay:
        self._count += 1
        draw = random.Random(f"{self.seed}/{self._count}/{key(knobs)}/{rung}")
        found = self.table.observe(knobs, rung, draw) if self.noisy else self.table.truth(knobs, rung)
        self.seconds += found.seconds
        return found

    def climb(self, knobs: Knobs, first: int) -> Outcome:
        """From rung `first` up to the first miss."""
        start, table = self.seconds, self.table
        if key(knobs) in table.failures:
            self.seconds += CRASH_SECONDS
            return Outcome(knobs, 0.0, 0.0, 0.0, {}, (), -1, CRASH_SECONDS)
        rung, replays = first, [(first, self.replay(knobs, first))]
        quality = self.quality(knobs) if replays[0][1].worst <= 0 else None
        floors_hold = quality is not None and max(quality[1].values()) <= 0
        while floors_hold and replays[-1][1].worst <= 0 and rung + 1 < len(table.ladder):
            rung += 1
            replays.append((rung, self.replay(knobs, rung)))
        held = [(rung, found) for rung, found in replays if found.worst <= 0]
        rung, told = held[-1] if held else replays[0]
        # Not asked because the SLOs were missed: quality 0, no floor missed (tuner.outcome.judge).
        value, floors = quality or (0.0, dict.fromkeys(table.floor_names, 0.0))
        return Outcome(
            knobs, told.goodput, value, told.tail, {**told.constraints, **floors},
            [(table.ladder[at], found.worst) for at, found in replays],
            rung if held and floors_hold else -1, self.seconds - start,
        )  # fmt: skip

    def told(self, knobs: Knobs) -> Quality | None:
        """What is known of the quality of answers like these."""
        return self.table.quality(knobs) if self.table.quality_key(knobs) in self._asked else None

    def quality(self, knobs: Knobs) -> tuple[float, dict[str, float]]:
        found = self.table.quality(knobs)
        if (name := self.table.quality_key(knobs)) not in self._asked:
            self._asked.add(name)
            self.seconds += found.seconds
        return found.quality, dict(found.constraints)


@dataclass(frozen=True, slots=True)
class Step:
    """After so many trials (the baseline is 0): engine-seconds spent, true regret of the best so far, share of the
    exhaustive hypervolume, crashes paid."""

    seconds: float
    regret: float
    hypervolume: float
    crashes: int


@dataclass(slots=True)
class Race:
    """bench: as it was left. outcomes: trial 0 is the baseline."""

    bench: Bench
    outcomes: list[Outcome]
    steps: list[Step]


def race(table: Table, strategy: Strategy, seed: int, trials: int) -> Race:
    """The baseline, then `trials` trials, each from the highest rung that a feasible one that answers at least as well
    has held."""
    bench = Bench(table, seed)
    outcomes = [_baseline(bench)]
    strategy.tell(outcomes[0])
    steps = [_step(bench, outcomes)]
    while len(outcomes) <= min(trials, len(table.configurations) - 1):
        knobs = strategy.ask()
        outcomes.append(bench.climb(knobs, _first_rung(bench, outcomes, knobs)))
        strategy.tell(outcomes[-1])
        steps.append(_step(bench, outcomes))
    return Race(bench, outcomes, steps)


def _first_rung(bench: Bench, outcomes: Sequence[Outcome], knobs: Knobs) -> int:
    """As a study has it (tuner.climb.incumbent_scale)."""
    told = bench.told(knobs)
    held = [(outcome.quality, outcome.held) for outcome in outcomes if outcome.held >= 0]
    return int(to_beat(told.quality if told is not None else None, held, 0))


def recorded(table: Table) -> int:
    """The rung nearest to the recorded rate, at which a study's ladder begins."""
    return min(range(len(table.ladder)), key=lambda rung: abs(math.log(table.ladder[rung])))


def _baseline(bench: Bench) -> Outcome:
    """As a study finds its load (tuner.knee); the outcome is that of the highest rung held."""
    knobs, start, first = bench.table.baseline, bench.seconds, recorded(bench.table)
    ladder, replays = bench.table.ladder[first:], dict[int, list[Replay]]()
    found: dict[int, list[float]] = {}
    while (rung := next_look(found, len(ladder))) is not None:
        replays.setdefault(rung, []).append(bench.replay(knobs, first + rung))
        found.setdefault(rung, []).append(replays[rung][-1].worst)
    knee = knee_of(found)
    told = min(replays[max(knee, 0)], key=lambda replay: replay.worst)
    quality, floors = bench.quality(knobs)
    rungs = [(ladder[rung], replay.worst) for rung in sorted(replays) for replay in replays[rung]]
    held = first + knee if knee >= 0 and max(floors.values()) <= 0 else -1
    return Outcome(
        knobs, told.goodput, quality, told.tail, {**told.constraints, **floors}, rungs, held, bench.seconds - start
    )


def incumbent(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The feasible one with the highest rung, then the largest SLO margin there: what a study recommends without finals
    (tuner.recommend.RULE)."""
    feasible = [outcome for outcome in outcomes if outcome.held >= 0]
    return max(feasible, key=lambda outcome: (outcome.held, -outcome.worst_slo), default=None)


def regret(table: Table, knobs: Knobs | None) -> float:
    """1 - true goodput / the exhaustive feasible best; 1 for what is not feasible at any load, or for nothing."""
    return 1.0 if knobs is None else 1.0 - table.goodputs[key(knobs)] / max(table.goodputs.values())


def front_share(table: Table, tried: Sequence[Knobs]) -> float:
    """Hypervolume of true (goodput, quality) that feasible `tried` ones dominate, over that of the whole table.

    Reference point: the goodput of the baseline, and the quality at which the floors break.
    """
    corner = (table.goodputs[key(table.baseline)], FLOOR_QUALITY)
    found = [table.points[key(one)] for one in tried if key(one) in table.points]
    whole = [point for point, on in zip(table.points.values(), table.front, strict=True) if on]
    return hypervolume(found, corner, MAXIMIZE) / hypervolume(whole, corner, MAXIMIZE)


def _step(bench: Bench, outcomes: Sequence[Outcome]) -> Step:
    best = incumbent(outcomes)
    tried = [outcome.knobs for outcome in outcomes if outcome.held >= 0]
    return Step(
        bench.seconds,
        regret(bench.table, best.knobs if best else None),
        front_share(bench.table, tried),
        sum(not outcome.constraints for outcome in outcomes),
    )
