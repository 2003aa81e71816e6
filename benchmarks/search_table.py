"""A measured full factorial, replayed: what a trial of any configuration at any load would have shown.

A file `MIX.jsonl.gz`: first a line {"environment", "mix", "space", "baseline", "slos", "rate", "ladder", "created"},
then a line a configuration {"knobs", "rungs": {index into ladder: {"goodput", "constraints", "tail", "seconds",
"stopped"}}, "failure"}, and lines {"repeats": {"knobs", "rung", "results": [as in rungs]}}. `quality.jsonl.gz` beside
it: a line a quality key {"knobs", "quality", "constraints", "seconds"}. Rungs are measured around the capacity only,
from the highest held to the lowest missed; those outside follow from the nearest measured one.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from search_spaces.space import key
from tuner.pareto import non_dominated
from tuner.proposals import ln_capacities
from tuner.scoring.slo import BADNESS_CAP

Knobs = Mapping[str, Any]
CAP = 4.0
"""Of a violation: BADNESS_CAP and the missing share of good requests, see tuner.outcome.graded."""
STOPPED = 0.05
"""Least violation of a replay that was stopped as hopeless."""
MAXIMIZE = ("maximize", "maximize")
MANY = 3
"""Repeats of which a median says something."""


@dataclass(frozen=True, slots=True)
class Replay:
    """One replay at one rung. goodput: requests/s. constraints: SLOs, <= 0 is held. tail, seconds: s."""

    goodput: float
    constraints: Mapping[str, float]
    tail: float
    seconds: float

    @property
    def worst(self) -> float:
        return max(self.constraints.values())


@dataclass(frozen=True, slots=True)
class Quality:
    """What the probes of one quality key show. seconds: to ask them, once a study."""

    quality: float
    constraints: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Noise:
    """One repeat beside the median of its kind: differences of constraints, of ln goodput, of ln tail."""

    constraints: Mapping[str, float]
    goodput: float
    tail: float


@dataclass(frozen=True)
class Table:
    """rate: requests/s as recorded. ladder: time scales, ascending. measured: knob key -> rung -> its replay, none for
    one that failed."""

    mix: str
    baseline: Knobs
    rate: float
    ladder: tuple[float, ...]
    configurations: tuple[Knobs, ...]
    measured: Mapping[str, Mapping[int, Replay]]
    failures: Mapping[str, str]
    noises: tuple[Noise, ...]
    qualities: tuple[tuple[Knobs, Quality], ...]
    environment: Mapping[str, Any]

    @cached_property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Values of each knob in the order of its parameter, numbers ascending."""
        found = {name: {json.dumps(k[name]): k[name] for k in self.configurations}.values() for name in self.baseline}
        return {name: tuple(sorted(values, key=_order)) for name, values in found.items()}

    @property
    def quality_knobs(self) -> tuple[str, ...]:
        return tuple(self.qualities[0][0])

    def quality_key(self, knobs: Knobs) -> str:
        return key({name: knobs[name] for name in self.quality_knobs})

    @property
    def floor_names(self) -> tuple[str, ...]:
        return tuple(self.qualities[0][1].constraints)

    @cached_property
    def slo_names(self) -> tuple[str, ...]:
        return tuple(next(iter(next(iter(self.measured.values())).values())).constraints)

    @cached_property
    def slope(self) -> float:
        """Growth of the worst constraint per unit of ln time scale: the median where two rungs were measured."""
        slopes = []
        for rungs in self.measured.values():
            at = sorted(rungs)
            for low, high in zip(at, at[1:], strict=False):
                step = math.log(self.ladder[high] / self.ladder[low])
                slopes.append((rungs[high].worst - rungs[low].worst) / step)
        return max(statistics.median(slopes), 0.1) if slopes else 1.0

    def quality(self, knobs: Knobs) -> Quality:
        return next(found for of, found in self.qualities if all(knobs[name] == value for name, value in of.items()))

    def truth(self, knobs: Knobs, rung: int) -> Replay:
        """The table's own replay, or one derived from the nearest measured rung."""
        rungs = self.measured[key(knobs)]
        if rung in rungs:
            return rungs[rung]
        nearest = min(rungs, key=lambda at: (abs(at - rung), at))
        return self._derived(rungs[nearest], self.ladder[rung] / self.ladder[nearest])

    def _derived(self, near: Replay, ratio: float) -> Replay:
        """A replay at `ratio` times the load: what holds still holds below, what misses still misses above."""
        shift = self.slope * math.log(ratio)
        constraints = {name: max(min(v + shift, CAP), -BADNESS_CAP) for name, v in near.constraints.items()}
        goodput = near.goodput * ratio if near.worst <= 0 else near.goodput
        return Replay(goodput, constraints, near.tail * ratio, near.seconds / ratio)

    @cached_property
    def capacities(self) -> dict[str, int]:
        """Knob key -> the highest rung held; -1 for a configuration that holds none or failed."""
        found = {}
        for knobs in self.configurations:
            rungs = () if key(knobs) in self.failures else range(len(self.ladder))
            found[key(knobs)] = max((r for r in rungs if self.truth(knobs, r).worst <= 0), default=-1)
        return found

    @cached_property
    def goodputs(self) -> dict[str, float]:
        """Knob key -> requests/s at capacity; 0 where a quality floor is missed or nothing held."""
        found = {}
        for knobs in self.configurations:
            rung = self.capacities[key(knobs)]
            feasible = rung >= 0 and max(self.quality(knobs).constraints.values()) <= 0
            found[key(knobs)] = self.truth(knobs, rung).goodput if feasible else 0.0
        return found

    @cached_property
    def ln_capacities(self) -> dict[str, float]:
        """Knob key -> ln of the time scale at which the worst SLO is just met, between the rungs or beyond them."""
        climbs = [[(self.ladder[r], found.worst) for r, found in rungs.items()] for rungs in self.measured.values()]
        return dict(zip(self.measured, ln_capacities(climbs)[0].tolist(), strict=True))

    @cached_property
    def halved(self) -> Table:
        """The same table with a rung halfway between any two, as the finals of a study have them (tuner.worth.LADDER):
        rung 2 r is rung r of this one."""
        between = [math.sqrt(low * high) for low, high in pairwise(self.ladder)]
        measured = {name: {2 * rung: found for rung, found in rungs.items()} for name, rungs in self.measured.items()}
        return replace(self, ladder=tuple(sorted((*self.ladder, *between))), measured=measured)

    def observe(self, knobs: Knobs, rung: int, draw: random.Random) -> Replay:
        """The truth under the noise of one of the repeats; no more requests are good than arrive."""
        true = self.truth(knobs, rung)
        if not self.noises:
            return true
        noise = draw.choice(self.noises)
        constraints = {name: v + noise.constraints.get(name, 0.0) for name, v in true.constraints.items()}
        goodput = min(true.goodput * math.exp(noise.goodput), self.rate * self.ladder[rung])
        return Replay(goodput, constraints, true.tail * math.exp(noise.tail), true.seconds)

    @cached_property
    def points(self) -> dict[str, tuple[float, float]]:
        """Knob key -> (goodput, quality) of the feasible ones."""
        feasible = [one for one in self.configurations if self.goodputs[key(one)] > 0]
        return {key(one): (self.goodputs[key(one)], self.quality(one).quality) for one in feasible}

    @cached_property
    def front(self) -> list[bool]:
        """Which of the points nothing beats."""
        return [bool(on) for on in non_dominated(list(self.points.values()), MAXIMIZE)]


def load_table(path: Path) -> Table:
    """Read MIX.jsonl.gz and the quality.jsonl.gz beside it. Raises ValueError for a table that is not one."""
    header, *lines = _lines(path)
    if missing := {"mix", "baseline", "rate", "ladder"} - set(header):
        raise ValueError(f"{path}:1: missing {', '.join(sorted(missing))}")
    rows = [line for line in lines if "knobs" in line]
    return Table(
        mix=header["mix"],
        baseline=header["baseline"],
        rate=header["rate"],
        ladder=tuple(header["ladder"]),
        configurations=tuple(row["knobs"] for row in rows),
        measured={key(row["knobs"]): _rungs(row["rungs"]) for row in rows if row["rungs"]},
        failures={key(row["knobs"]): row["failure"] or "not_measured" for row in rows if not row["rungs"]},
        noises=tuple(noise for line in lines if "repeats" in line for noise in _noises(line["repeats"]["results"])),
        qualities=tuple((line["knobs"], _quality(line)) for line in _lines(path.with_name("quality.jsonl.gz"))),
        environment=header.get("environment", {}),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _rungs(rungs: Mapping[str, Any]) -> dict[int, Replay]:
    return {int(rung): _replay(found) for rung, found in rungs.items()}


def _replay(found: Mapping[str, Any]) -> Replay:
    """A stopped replay held nothing, whatever its constraints were until then."""
    least = STOPPED if found.get("stopped") and max(found["constraints"].values()) <= 0 else -math.inf
    constraints = {name: max(value, least) for name, value in found["constraints"].items()}
    return Replay(found["goodput"], constraints, found["tail"], found["seconds"])


def _quality(line: Mapping[str, Any]) -> Quality:
    return Quality(line["quality"], line["constraints"], line["seconds"])


def _noises(results: Sequence[Mapping[str, Any]]) -> list[Noise]:
    """Differences from the median of the repeats: one replay in ten meets a slow moment of the machine, far off."""
    if len(results) < MANY:
        return []
    replays = [_replay(found) for found in results]
    typical = {name: statistics.median(r.constraints[name] for r in replays) for name in replays[0].constraints}
    goodput = statistics.median(math.log(max(r.goodput, 1e-9)) for r in replays)
    tail = statistics.median(math.log(max(r.tail, 1e-9)) for r in replays)
    return [
        Noise(
            {name: r.constraints[name] - value for name, value in typical.items()},
            math.log(max(r.goodput, 1e-9)) - goodput,
            math.log(max(r.tail, 1e-9)) - tail,
        )
        for r in replays
    ]


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (value is not None, float(value) if number else math.inf, str(value))
