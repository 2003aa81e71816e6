"""Sentinels: the baseline replayed between trials; where the machine has drifted, trials are measured again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import optuna

from tuner.bench import Bench
from tuner.drift import MAX_DRIFTS, Drift, Watch, watch
from tuner.errors import ServingError
from tuner.search import DRIFTED, INTERRUPTED
from tuner.stored import StoredMeasurement


def keep_watch(bench: Bench, study: optuna.Study, time_scale: float) -> None:
    """Replay the baseline if it is its turn, once more if the reading is off, and ask again what a drift spoiled.

    All of it follows from the stored measurements: what an interruption left undone is done by the next call.
    """
    if not bench.plan.spec.budget.sentinel:
        return
    stored = bench.store.measurements(bench.study_name)
    found = watch(stored, bench.plan.spec, time_scale)
    while len(found.drifts) < MAX_DRIFTS and (found.undecided or _due(bench, stored)):
        again, before = found.undecided, len(found.drifts)
        if not _replay(bench, time_scale, again):
            break
        stored = bench.store.measurements(bench.study_name)
        found = watch(stored, bench.plan.spec, time_scale)
        if len(found.drifts) > before:
            _say(bench, found.drifts)
        if again:
            break
    _ask_again(study, found)


def _due(bench: Bench, stored: Sequence[StoredMeasurement]) -> bool:
    """Whether as many trials as the study file says have ended since the last sentinel."""
    sentinels = [one for one in stored if one.measurement.purpose == "sentinel"]
    last, created = (sentinels[-1].id, sentinels[-1].created) if sentinels else (0, "")
    ended = {one.trial for one in stored if one.measurement.purpose == "trial" and one.id > last}
    failures = bench.store.failures(bench.study_name)
    ended |= {one.trial for one in failures if one.created > created and one.trial and one.reason != INTERRUPTED}
    return len(ended) >= bench.plan.spec.budget.sentinel


def _replay(bench: Bench, time_scale: float, again: bool) -> bool:
    """Whether the engine could be measured: a sentinel that fails ends no study."""
    bench.report.begin("sentinel" + (", again" if again else ""))
    bench.report.at(time_scale)
    config, load = bench.plan.config(bench.plan.baseline), bench.plan.load("tune", time_scale)
    try:
        bench.measure(0, config, load, "sentinel")
    except ServingError as error:
        bench.report.note(f"sentinel: {error.reason}: {error}")
        return False
    return True


def _say(bench: Bench, drifts: Sequence[Drift]) -> None:
    by = drifts[-1].by
    bench.report.note(
        f"the machine drifted: the baseline holds about {abs(math.expm1(by)):.0%} {'less' if by < 0 else 'more'} load"
        " than at the last good sentinel; the trials since then are measured again"
        + ("; it is not steady, and is watched no longer" if len(drifts) == MAX_DRIFTS else "")
    )


def _ask_again(study: optuna.Study, found: Watch) -> None:
    """Told trials cannot be changed: the study keeps their numbers. First asked, then kept: nothing is lost between."""
    known: list[int] = study.user_attrs.get(DRIFTED, [])
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    for number in found.affected:
        if number not in known:
            study.enqueue_trial(dict(trials[number].params))
            known = [*known, number]
            study.set_user_attr(DRIFTED, known)
