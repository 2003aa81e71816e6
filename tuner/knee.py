"""Where a study's climb begins: the highest rung of the ladder at which the baseline holds its SLOs."""

from __future__ import annotations

from tuner import ladder
from tuner.bench import Bench
from tuner.outcome import disqualifying_doubt, slo_violation
from tuner.serving.measurement import Measurement


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
    """The rung, -1 if not even the recorded rate is held. Replays that are lacking are measured."""
    found = {
        rung: [slo_violation(bench.plan, replay) for replay in done[ladder.scale(rung)]]
        for rung in range(ladder.RUNGS + 1)
        if done[ladder.scale(rung)]
    }
    while (rung := ladder.next_look(found, ladder.RUNGS + 1)) is not None:
        scale = ladder.scale(rung)
        bench.report.begin(f"calibration x{scale:g}" + (", again" if rung in found else ""))
        config, load = bench.plan.config(bench.plan.baseline), bench.plan.load("tune", scale)
        measured = bench.measure(None, config, load, "calibration")
        found.setdefault(rung, []).append(slo_violation(bench.plan, measured))
    return ladder.knee_of(found)
