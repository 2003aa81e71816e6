"""Where a study's climb begins: the highest rung of the ladder at which the baseline holds its SLOs."""

from __future__ import annotations

from tuner import ladder
from tuner.bench import Bench
from tuner.errors import EngineCrashed, EngineHung, EngineOutOfMemory
from tuner.outcome import disqualifying_doubt, slo_violation
from tuner.scoring.slo import BADNESS_CAP


def time_scale(bench: Bench) -> float:
    """How much faster than recorded the first trials replay: given, found earlier, or found now."""
    if (known := bench.store.study_info(bench.study_name).time_scale) is not None:
        return known
    held = _highest_held(bench)
    scale = ladder.SCALES[max(held, 0)]
    bench.store.set_time_scale(bench.study_name, scale)
    bench.report.note("load: " + _in_words(held, scale))
    return scale


def _in_words(held: int, scale: float) -> str:
    if held < 0:
        return f"the baseline misses an SLO even at {scale:g} times the recorded rate; the trials start there"
    return f"the trials start at {scale:g} times the recorded rate, the most the baseline holds"


def _highest_held(bench: Bench) -> int:
    """The rung of ladder.SCALES, -1 if none is held. Replays that are lacking are measured."""
    found: dict[int, list[float]] = {}
    for stored in bench.store.measurements(bench.study_name):
        replay = stored.measurement
        if replay.purpose == "calibration" and disqualifying_doubt(bench.plan, replay) is None:
            found.setdefault(ladder.SCALES.index(replay.time_scale), []).append(slo_violation(bench.plan, replay))
    while (rung := ladder.next_look(found, len(ladder.SCALES), -ladder.LOWEST)) is not None:
        scale = ladder.SCALES[rung]
        bench.report.begin(f"calibration x{scale:g}" + (", again" if rung in found else ""))
        config, load = bench.plan.config(bench.plan.baseline), bench.plan.load("tune", scale)
        try:
            violation = slo_violation(bench.plan, bench.measure(None, config, load, "calibration"))
        except (EngineCrashed, EngineHung, EngineOutOfMemory) as error:
            # What it serves with less load, if anything, is looked for all the same: trials need not crash.
            bench.report.note(f"calibration x{scale:g}: {error.reason}: {error}")
            violation = BADNESS_CAP
        found.setdefault(rung, []).append(violation)
    return ladder.knee_of(found)
