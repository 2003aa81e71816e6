"""The load of a study: how much faster than recorded the trials replay, so that there is something to tune.

Below capacity every configuration has the same goodput. The baseline is replayed faster and faster until it misses
at two steps in a row; the trials run at the second, since at the knee itself the baseline would meet or miss its SLOs
by chance, and one miss may be a slow moment of the machine.
"""

from __future__ import annotations

from tuner.bench import Bench
from tuner.outcome import disqualifying_doubt, misses_an_slo
from tuner.serving.measurement import Measurement

LADDER = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
"""Time scales at which the baseline is tried until it misses an SLO."""
CONFIRMATIONS = 2
"""Replays that must miss, of one more than that: one slow second of the machine is not the knee."""


STEPS_MISSED = 2
"""Steps in a row at which the baseline must miss; the trials run at the last of them."""


def time_scale(bench: Bench) -> float:
    """How much faster than recorded the trials replay: given, found earlier, or found now."""
    if (known := bench.store.study_info(bench.study_name).time_scale) is not None:
        return known
    done: dict[float, list[Measurement]] = {scale: [] for scale in LADDER}
    for stored in bench.store.measurements(bench.study_name):
        replay = stored.measurement
        if replay.purpose == "calibration" and disqualifying_doubt(bench.plan, replay) is None:
            done[replay.time_scale].append(replay)
    scale, misses = LADDER[0], 0
    for scale in LADDER:
        misses = misses + 1 if _baseline_misses(bench, scale, done[scale]) else 0
        if misses == STEPS_MISSED:
            break
    bench.store.set_time_scale(bench.study_name, scale)
    found = misses == STEPS_MISSED
    why = "one step past where the baseline misses an SLO" if found else "the most that is tried"
    bench.report.note(f"load: {scale:g} times the recorded rate, {why}")
    return scale


def _baseline_misses(bench: Bench, scale: float, replays: list[Measurement]) -> bool:
    """Whether the baseline misses an SLO at `scale`: it holds if the first replay does, otherwise the majority of
    three decides. Replays that are lacking are measured."""
    verdicts: list[bool] = []
    while verdicts.count(True) < CONFIRMATIONS:
        if len(verdicts) == len(replays):
            bench.report.begin(f"calibration x{scale:g}" + (", again" if verdicts else ""))
            config, load = bench.plan.config(bench.plan.baseline), bench.plan.load("tune", scale)
            replays.append(bench.measure(None, config, load, "calibration"))
        verdicts.append(misses_an_slo(bench.plan, replays[len(verdicts)]))
        if not verdicts[0] or verdicts.count(False) == CONFIRMATIONS:
            return False
    return True
