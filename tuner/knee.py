"""Where a study's climb begins: the highest rung of the ladder at which the baseline holds its SLOs."""

from __future__ import annotations

import math

from tuner import ladder
from tuner.bench import Bench
from tuner.outcome import disqualifying_doubt, slo_violation
from tuner.serving.measurement import Measurement

CONFIRMATIONS = 2
"""Replays that must miss, of one more than that: one slow second of the machine is not the knee."""
STRIDE = 8
"""Rungs that one step may go up at most, to three times the load: far below the knee latency hardly depends on it."""


def time_scale(bench: Bench) -> float:
    """How much faster than recorded the first trials replay: given, found earlier, or found now."""
    if (known := bench.store.study_info(bench.study_name).time_scale) is not None:
        return known
    done: dict[float, list[Measurement]] = {ladder.scale(rung): [] for rung in range(ladder.RUNGS + 1)}
    for stored in bench.store.measurements(bench.study_name):
        replay = stored.measurement
        if replay.purpose == "calibration" and disqualifying_doubt(bench.plan, replay) is None:
            done[replay.time_scale].append(replay)
    held = _highest_held(bench, done)
    scale = ladder.scale(max(held, 0))
    bench.store.set_time_scale(bench.study_name, scale)
    if held < 0:
        bench.report.note("load: the baseline misses an SLO at the recorded rate; the trials start there")
    else:
        bench.report.note(f"load: the trials start at {scale:g} times the recorded rate, the most the baseline holds")
    return scale


def _highest_held(bench: Bench, done: dict[float, list[Measurement]]) -> int:
    """The rung, -1 if not even the recorded rate is held. Each step goes where what the last held one had to spare
    would be used up if latency grew in proportion to load; it grows faster near the knee, so that few fall short."""
    low, high, stride = -1, ladder.RUNGS + 1, 1
    while high - low > 1:
        rung = min(low + stride, high - 1)
        violation = _violation(bench, ladder.scale(rung), done)
        if violation > 0:
            high = rung
        else:
            low, stride = rung, max(min(int(-violation / math.log(ladder.RATIO)), STRIDE), 1)
        if high - low <= stride:
            stride = max((high - low) // 2, 1)
    return low


def _violation(bench: Bench, scale: float, done: dict[float, list[Measurement]]) -> float:
    """The baseline's worst SLO constraint at `scale`, positive when it misses: it holds if the first replay does,
    otherwise the majority of three decides. Replays that are lacking are measured."""
    found: list[float] = []
    replays = done[scale]
    while sum(value > 0 for value in found) < CONFIRMATIONS:
        if len(found) == len(replays):
            bench.report.begin(f"calibration x{scale:g}" + (", again" if found else ""))
            config, load = bench.plan.config(bench.plan.baseline), bench.plan.load("tune", scale)
            replays.append(bench.measure(None, config, load, "calibration"))
        found.append(slo_violation(bench.plan, replays[len(found)]))
        if found[0] <= 0 or sum(value <= 0 for value in found) == CONFIRMATIONS:
            return max(value for value in found if value <= 0)
    return max(found)
