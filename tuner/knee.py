"""Where a study's climb begins: the highest rung of the ladder at which the baseline holds its SLOs."""

from __future__ import annotations

from tuner import ladder
from tuner.bench import Bench
from tuner.outcome import disqualifying_doubt, misses_an_slo
from tuner.serving.measurement import Measurement

CONFIRMATIONS = 2
"""Replays that must miss, of one more than that: one slow second of the machine is not the knee."""


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
    """The rung, -1 if not even the recorded rate is held. Strides double until one misses, then halve (exponential
    and binary search, Bentley and Yao, 1976)."""
    low, stride = -1, 1
    while low + stride <= ladder.RUNGS:
        if _misses(bench, ladder.scale(low + stride), done):
            break
        low, stride = low + stride, 1 if low < 0 else 2 * stride
    high = min(low + stride, ladder.RUNGS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _misses(bench, ladder.scale(middle), done) else (middle, high)
    return low


def _misses(bench: Bench, scale: float, done: dict[float, list[Measurement]]) -> bool:
    """Whether the baseline misses an SLO at `scale`: it holds if the first replay does, otherwise the majority of
    three decides. Replays that are lacking are measured."""
    verdicts: list[bool] = []
    replays = done[scale]
    while verdicts.count(True) < CONFIRMATIONS:
        if len(verdicts) == len(replays):
            bench.report.begin(f"calibration x{scale:g}" + (", again" if verdicts else ""))
            config, load = bench.plan.config(bench.plan.baseline), bench.plan.load("tune", scale)
            replays.append(bench.measure(None, config, load, "calibration"))
        verdicts.append(misses_an_slo(bench.plan, replays[len(verdicts)]))
        if not verdicts[0] or verdicts.count(False) == CONFIRMATIONS:
            return False
    return True
