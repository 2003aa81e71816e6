"""What a simulated replay says of a configuration: whether its SLOs hold, and up to which load."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tuner import ladder
from tuner.scoring.slo import SLO, finished, latencies, violation
from tuner.serving.config import ServingConfig
from tuner.serving.testbed import Load
from tuner.simulation import SimulatedReplay, Simulator
from tuner.traffic.trace import RequestRecord

SLOWER = 0.25, 8.0
"""Least and largest factor that a calibration looks for."""
CALIBRATION_STEP = 1.01


def misses(replay: SimulatedReplay, slos: Mapping[str, SLO]) -> float:
    """The largest violation of a class: <= 0 when every SLO holds (see slo.violation)."""
    grouped: dict[str, list[RequestRecord]] = {}
    for record in replay.records:
        grouped.setdefault(record.slo_class, []).append(record)
    return max(violation(records, slos[name]) for name, records in grouped.items())


def calibrated(simulator: Simulator, measured: Sequence[tuple[ServingConfig, Load, Sequence[RequestRecord]]]) -> float:
    """How much slower the machine is than its profile, from replays that were measured: the factor (Profile.slower) at
    which the median request ends as late as it did, by bisection.

    What a profile does not see, other processes and this hour, slows every step alike. 1 where no request ended in
    both.
    """
    low, high = math.log(SLOWER[0]), math.log(SLOWER[1])
    while high - low > math.log(CALIBRATION_STEP):
        middle = (low + high) / 2
        slowed = simulator.slower(math.exp(middle))
        ratios = [ratio for config, load, records in measured for ratio in _late(slowed.replay(config, load), records)]
        if not ratios:
            return 1.0
        low, high = (low, middle) if statistics.median(ratios) > 0 else (middle, high)
    return math.exp((low + high) / 2)


def _late(replay: SimulatedReplay, records: Sequence[RequestRecord]) -> list[float]:
    """ln(simulated / measured) of the time to the last token, of the requests that were answered in both."""
    found = []
    for ours, theirs in zip(
        sorted(replay.records, key=lambda r: r.request_id), sorted(records, key=lambda r: r.request_id), strict=True
    ):
        assert ours.request_id == theirs.request_id, "the same load"
        if finished(ours) and finished(theirs):
            found.append(math.log(latencies(ours)["e2e"] / latencies(theirs)["e2e"]))
    return found


@dataclass(frozen=True, slots=True)
class Capacity:
    """scale: the time scale up to which every SLO holds, between two rungs by their violations. held: the rung that
    does, None where not even the lowest is. replays: how many were simulated."""

    scale: float
    held: float | None
    replays: int


def capacity(
    simulator: Simulator, config: ServingConfig, load: Callable[[float], Load], slos: Mapping[str, SLO], start: float
) -> Capacity:
    """Climb the ladder from `start` up, or down to where the SLOs hold. load: the traffic at a time scale.

    Raises what Simulator.replay does.
    """
    found: dict[float, float] = {}

    def holds(scale: float) -> bool:
        found[scale] = misses(simulator.replay(config, load(scale)), slos)
        return found[scale] <= 0

    held, rung = None, start
    if holds(start):
        held = start
        while held < ladder.SCALES[-1] and holds(ladder.above(held)):
            held = ladder.above(held)
    else:
        while held is None and (lower := ladder.below(rung)) is not None:
            rung = lower
            held = rung if holds(rung) else None
    if held is None:
        return Capacity(rung * math.exp(-found[rung]), None, len(found))
    missed = found.get(ladder.above(held))
    share = 0.0 if missed is None else found[held] / (found[held] - missed)
    return Capacity(held * ladder.RATIO**share, held, len(found))
