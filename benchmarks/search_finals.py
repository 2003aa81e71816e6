"""After a study replayed on a table: its finals as tuner.validation holds them, and what it then recommends.

The held-out window is the same table under noise that the race has not seen: it has no other traffic.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.search_race import Bench, Race, incumbent
from benchmarks.search_strategies import Outcome
from benchmarks.search_table import Knobs, Replay, Table
from search_spaces.space import key
from tuner.finals import (
    CONFIDENCE,
    FIRST_REPLAYS,
    Candidate,
    Estimate,
    choose,
    claimed,
    estimates,
    larger,
    mostly,
    next_replay,
    undecided,
)
from tuner.proposals import ln_capacities, slope_of
from tuner.validation import DESCENT, REPLAYS_EACH, SUBSTITUTES

FINALISTS = 2
"""As a study file that says nothing of them (tuner.spec.BudgetSpec)."""
HELD_OUT = 20
"""Further replays of a recommendation: one would be a coin thrown once a seed."""


@dataclass(frozen=True, slots=True)
class Recommended:
    """knobs None: nothing feasible. rung: of Table.halved, and goodput: as claimed. seconds: of the whole study, finals
    included. error: standard error of ln capacity that the race left; 0 without one."""

    knobs: Knobs | None
    rung: int
    goodput: float
    seconds: float
    error: float = 0.0


def without_finals(done: Race, trials: int) -> Recommended:
    """The incumbent after so many trials, as the search saw it."""
    best = incumbent(done.outcomes[: trials + 1])
    seconds = done.steps[min(trials, len(done.steps) - 1)].seconds
    return Recommended(None, -1, 0.0, seconds) if best is None else Recommended(
        best.knobs, 2 * best.held, best.goodput, seconds
    )  # fmt: skip


def with_finals(done: Race, trials: int, finalists: int = FINALISTS) -> Recommended:
    """After so many trials the baseline and the candidates race; the winner and the baseline are held out; the baseline
    is recommended unless the winner holds a higher rung and has the larger capacity with probability 0.95."""
    bench = Bench(done.bench.table.halved, done.bench.seed + 1_000_000, done.bench.noisy)
    bench.seconds = done.steps[min(trials, len(done.steps) - 1)].seconds
    measured = [outcome for outcome in done.outcomes[: trials + 1] if outcome.rungs]
    return _Finals(bench, measured).recommend(finalists)


@dataclass(slots=True)
class _Finals:
    """outcomes: the baseline first. replays: index -> (rung, replay). held_out: index -> what it held there."""

    bench: Bench
    outcomes: Sequence[Outcome]
    replays: dict[int, list[tuple[int, Replay]]] = field(default_factory=dict)
    held_out: dict[int, tuple[int, float]] = field(default_factory=dict)
    out: set[int] = field(default_factory=set)
    expected: Sequence[float] = ()
    slope: float = 1.0

    def recommend(self, finalists: int) -> Recommended:
        climbs = [outcome.rungs for outcome in self.outcomes]
        self.expected, self.slope = ln_capacities(climbs)[0].tolist(), slope_of(climbs)
        feasible = [index for index, outcome in enumerate(self.outcomes) if index and outcome.held >= 0]
        reserve = sorted(feasible, key=lambda index: -self.expected[index])[: finalists + SUBSTITUTES]
        while standing := [index for index in reserve if index not in self.out][:finalists]:
            gone = [index for index in (0, *reserve) if index in self.out and index in self.replays]
            racing = [self._candidate(index) for index in (*({0} - self.out), *standing, *gone)]
            turn = next_replay(racing, self._ladder, self.slope, REPLAYS_EACH * len(racing))
            if turn is not None:
                self._replay(racing[turn[0]].number, turn[1])
                continue
            best = choose([replace(one, out=one.out or not one.number) for one in racing], self.slope)
            assert best is not None
            if self._holds_out(racing[best].number):
                return self._better(racing[best].number)
        return self._alone()

    @property
    def _ladder(self) -> tuple[float, ...]:
        return self.bench.table.ladder

    def _candidate(self, index: int) -> Candidate:
        replays = [(self._ladder[rung], found.worst) for rung, found in self.replays.get(index, ())]
        return Candidate(index, self.expected[index], replays, index in self.out)

    def _replay(self, index: int, rung: int) -> None:
        found = self.bench.replay(self.outcomes[index].knobs, rung)
        self.replays.setdefault(index, []).append((rung, found))
        if len(self.replays[index]) >= FIRST_REPLAYS and self._claim(index) is None:
            self.out.add(index)

    def _estimate(self, index: int) -> Estimate:
        raced = [self._candidate(one) for one in self.replays]
        return dict(zip(self.replays, estimates(raced, self.slope), strict=True))[index]

    def _claim(self, index: int) -> tuple[int, float] | None:
        """Rung and goodput that the race shows (tuner.worth.shown); None: it holds nothing."""
        found = self.replays[index]
        rung = min(claimed(self._candidate(index), self._estimate(index), self._ladder), max(rung for rung, _ in found))
        if rung < 0:
            return None
        near = min(at for at, _ in found if at >= rung)
        goodput = _median(replay for at, replay in found if at == near)
        return rung, goodput * self._ladder[rung] / self._ladder[near]

    def _holds_out(self, index: int) -> bool:
        """On the held-out window, from the claimed rung down; who holds nothing is out."""
        claim = self._claim(index) if index in self.replays else None
        if (found := self._descend(index, claim[0] if claim else 2 * self.outcomes[index].held)) is None:
            self.out.add(index)
            return False
        self.held_out[index] = found if claim is None else min(claim, found)
        return True

    def _descend(self, index: int, rung: int) -> tuple[int, float] | None:
        lower = range((rung - 1) // 2 * 2, -1, -2)
        for at in (rung, *lower[:DESCENT]):
            found: list[Replay] = []
            while not found or undecided([one.worst <= 0 for one in found]):
                found.append(self.bench.replay(self.outcomes[index].knobs, at))
            if mostly([one.worst <= 0 for one in found]):
                return at, _median(found)
        return None

    def _better(self, index: int) -> Recommended:
        """The baseline, unless it holds less, and the race says so with probability (tuner.recommend.RULE)."""
        if 0 not in self.out and self._holds_out(0):
            sure = larger(self._estimate(index), self._estimate(0)) >= CONFIDENCE
            if self.held_out[0][0] >= self.held_out[index][0] or not sure:
                index = 0
        return self._recommended(index)

    def _alone(self) -> Recommended:
        """Where no candidate is left: the baseline, or nothing."""
        if 0 in self.out or self.outcomes[0].held < 0 or not self._holds_out(0):
            return Recommended(None, -1, 0.0, self.bench.seconds)
        return self._recommended(0)

    def _recommended(self, index: int) -> Recommended:
        found = self._estimate(index) if index in self.replays else None
        error = 0.0 if found is None else found.deviation / math.sqrt(found.count)
        return Recommended(self.outcomes[index].knobs, *self.held_out[index], self.bench.seconds, error)


def _median(replays: Iterable[Replay]) -> float:
    """The lower median of their goodputs."""
    return statistics.median_low(replay.goodput for replay in replays)


def true_feasible(table: Table, found: Recommended) -> bool:
    """Whether the table holds the claimed rung with this configuration, and its quality floors."""
    return found.knobs is not None and table.halved.goodputs[key(found.knobs)] > 0 and (
        0 <= found.rung <= table.halved.capacities[key(found.knobs)]
    )  # fmt: skip


def holds_out(table: Table, found: Recommended, seed: int) -> float:
    """Share of HELD_OUT further replays at the claimed rung, under noise that the study has not seen, that hold."""
    if found.knobs is None or found.rung < 0 or table.goodputs[key(found.knobs)] == 0:
        return 0.0
    bench = Bench(table.halved, seed + 2_000_000)
    return statistics.fmean(bench.replay(found.knobs, found.rung).worst <= 0 for _ in range(HELD_OUT))
