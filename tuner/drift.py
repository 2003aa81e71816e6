"""Drift: whether the machine still is the one that the first trials were measured on. Pure; tuner/sentinel.py replays.

A sentinel is a replay of the baseline at the load that it held when the load was looked for; at time scale s with worst
SLO constraint v it reads ln s - v / slope. All are at one load, so that readings differ by what the machine became.
The rule is Shewhart's (Economic Control of Quality of Manufactured Product, 1931; NIST/SEMATECH e-Handbook 6.3.2), with
a confirmation: a reading further than `limit` from the median of its era is taken again, and two on one side are a
drift.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuner.finals import PRIOR_SD
from tuner.proposals import SLOPE
from tuner.scored import score, worst_slo
from tuner.spec import StudySpec
from tuner.stored import StoredMeasurement

MAX_DRIFTS = 3
"""A machine that drifts more often is not steady, and measuring again would not end."""


@dataclass(frozen=True, slots=True)
class Drift:
    """since: index of the last reading before it. found: of the first beyond. by: change of ln capacity."""

    since: int
    found: int
    by: float


@dataclass(frozen=True, slots=True)
class Watch:
    """affected: numbers of the trials that ended between the last good sentinel and a drift, in order. undecided: the
    last reading lies beyond the limit and was not yet taken again."""

    drifts: tuple[Drift, ...]
    undecided: bool
    affected: tuple[int, ...]


def limit(count: int) -> float:
    """Three standard deviations, in ln load, of a reading against the middle of `count` others."""
    return 3 * PRIOR_SD * math.sqrt(1 + 1 / count)


def detect(readings: Sequence[float]) -> tuple[tuple[Drift, ...], bool]:
    """Drifts among readings of ln capacity in the order in which they were taken, and whether the last is undecided."""
    drifts: list[Drift] = []
    era: list[int] = []
    pending: int | None = None
    for index, reading in enumerate(readings):
        off = reading - statistics.median(readings[i] for i in era) if era else 0.0
        beyond = bool(era) and abs(off) > limit(len(era))
        if pending is None:
            if beyond:
                pending = index
            else:
                era.append(index)
            continue
        first = off - reading + readings[pending]
        if beyond and (off > 0) == (first > 0):
            drifts.append(Drift(era[-1], pending, (off + first) / 2))
            era = [pending, index]
        else:
            era.append(index)  # one slow moment: the reading before stays out of the era
        pending = None
    return tuple(drifts[:MAX_DRIFTS]), pending is not None


def watch(stored: Sequence[StoredMeasurement], spec: StudySpec, time_scale: float | None) -> Watch:
    """What the measurements of a study say of its machine. stored: in order. time_scale: the load of the sentinels;
    the calibration's and the baseline's replays there are the first readings."""
    ids, readings = [], []
    for one in stored:
        if (found := _reading(one, spec, time_scale)) is not None:
            ids.append(one.id)
            readings.append(found)
    drifts, undecided = detect(readings)
    spans = [(ids[drift.since], ids[drift.found]) for drift in drifts]
    trials = [one for one in stored if one.trial is not None and one.measurement.purpose == "trial"]
    affected = dict.fromkeys(one.trial for one in trials if any(low < one.id < high for low, high in spans))
    return Watch(drifts, undecided, tuple(number for number in affected if number is not None))


def _reading(stored: StoredMeasurement, spec: StudySpec, time_scale: float | None) -> float | None:
    """ln capacity of the baseline, None for what is no sentinel or has no figures."""
    one = stored.measurement
    if one.purpose not in ("calibration", "baseline", "sentinel") or one.time_scale != time_scale or one.stopped:
        return None
    scored = score(replace(one, probes=()), (), spec)
    if scored.disqualified is not None:
        return None
    return math.log(one.time_scale) - worst_slo(scored.constraints) / SLOPE
