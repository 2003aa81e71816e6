"""What a study says, derived from the store on reading: nothing here is stored.

A new SLO or floor therefore re-scores old runs without an engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from tuner.drift import watch
from tuner.pareto import non_dominated
from tuner.scored import Scored, representative, score, worst_slo
from tuner.scoring.metrics import TrafficMetrics
from tuner.scoring.probes import ProbeRecord
from tuner.scoring.quality import QualityScore
from tuner.serving.measurement import Measurement
from tuner.spec import StudySpec, parse_spec
from tuner.stopping import WORDS, Stop
from tuner.store import Store
from tuner.stored import AskedTrial, Failure, StoredMeasurement, ValidationFailure

TrialState = Literal["feasible", "infeasible", "doubtful", "failed", "running"]
OBJECTIVES = ("goodput", "quality", "tail_latency")
DIRECTIONS = ("maximize", "maximize", "minimize")
TRIALS = ("baseline", "trial")
VALIDATIONS = ("calibration", "recorded_rate", "holdout", "repeat", "ablation", "scenario")
"""Purposes of measurements: those that are a trial, and those that test the configuration of one."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial, scored. objectives: in the order of OBJECTIVES, None unless measured.

    A doubtful trial was measured, but not it: see Scored.disqualified. It has no figures, so that none is compared.

    constraints: signed, <= 0 is feasible, keys "slo:<class>" and "quality:<slice>". reason: typed reason of a failure
    or of an early stop. seconds: where the trial's time went, all its replays together. time_scale: of the replay that
    it is scored by, the highest that it held, or else the lowest that it was tried at; missed_scale: the lowest above
    it, if any, at which it did not hold. engine_metrics: of that replay, see Measurement. rungs: (time scale, worst SLO
    constraint) of all its replays in order, but those that a doubt disqualifies.
    """

    number: int
    state: TrialState
    knobs: Mapping[str, Any]
    objectives: tuple[float, float, float] | None
    constraints: Mapping[str, float]
    traffic: TrafficMetrics | None
    quality: QualityScore | None
    reason: str | None = None
    detail: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    on_front: bool = False
    time_scale: float | None = None
    missed_scale: float | None = None
    rungs: tuple[tuple[float, float], ...] = ()
    engine_metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """A measurement outside the search: calibration, recorded_rate, holdout or repeat, of one trial's configuration.

    trial: number of the trial whose configuration was measured, or in an ablation or a scenario a variation of it; then
    window says which. tail_latency: seconds, see TrialResult.objectives. created: UTC, ISO 8601.
    """

    trial: int
    purpose: str
    window: str
    time_scale: float
    traffic: TrafficMetrics
    constraints: Mapping[str, float]
    tail_latency: float
    created: str = ""

    @property
    def holds(self) -> bool:
        """Every constraint does."""
        return all(value <= 0 for value in self.constraints.values())

    @property
    def worst_slo(self) -> float:
        """The largest SLO constraint."""
        return worst_slo(self.constraints)

    @property
    def misses_quality(self) -> bool:
        """A floor is missed, which no other load would mend."""
        return any(value > 0 for name, value in self.constraints.items() if name.startswith("quality:"))


@dataclass(frozen=True, slots=True)
class StudyResults:
    """Everything a reader needs. trials[0] is the baseline. time_scale: the first trials replayed the traffic so much
    faster than recorded.

    validation_failures: those that no later measurement of the same trial and purpose has made up for. search_end: why
    the search ended; None of a study that does not say, before its first trial or of an earlier servetune.
    """

    spec: StudySpec
    trials: tuple[TrialResult, ...]
    validations: tuple[ValidationResult, ...]
    time_scale: float
    environment: Mapping[str, Any]
    provenance: Mapping[str, Any]
    validation_failures: tuple[ValidationFailure, ...] = ()
    search_end: Stop | None = None

    @property
    def baseline(self) -> TrialResult:
        return self.trials[0]

    @property
    def candidates(self) -> tuple[TrialResult, ...]:
        """The feasible trials by number, each configuration once, by its first feasible one: a replicate is another
        reading of it. The baseline's is trial 0 alone, once that was measured."""
        feasible = sorted((t for t in self.trials if t.state == "feasible"), key=lambda trial: trial.number)
        kept = [self.baseline] if self.baseline.traffic is not None else []
        for trial in feasible:
            if all(dict(trial.knobs) != dict(one.knobs) for one in kept):
                kept.append(trial)
        return tuple(trial for trial in kept if trial.state == "feasible")

    @property
    def front(self) -> tuple[TrialResult, ...]:
        return tuple(t for t in self.trials if t.on_front)


def load_results(
    store: Store, study: str, spec: StudySpec | None = None, scores: dict[int, Scored] | None = None
) -> StudyResults:
    """Everything that a study has measured so far, scored with `spec`, or with the study's own file.

    scores: of measurements by id; what it lacks is added, so that who reads a study again and again scores each
    measurement once.

    Raises ValueError for an unknown study, one that has no trials yet, and a spec that does not fit its records.
    """
    info = store.study_info(study)
    own = parse_spec(yaml.safe_load(info.spec), source=f"study {study!r}", base=Path("/"))
    used = spec or own
    reference = store.reference(str(info.provenance.get("reference_key", ""))) or ()
    measured = store.measurements(study)
    known = {} if scores is None else scores
    by_trial: dict[int | None, list[tuple[Measurement, Scored]]] = {}
    for stored in measured:
        _score(stored, reference, used, known)
        if stored.measurement.purpose in TRIALS:
            by_trial.setdefault(stored.trial, []).append((stored.measurement, known[stored.id]))
    validations = _validations(measured, known)
    drifted = watch(measured, own, info.time_scale).affected  # of the machine, which other SLOs do not mend
    failures = {failure.trial: failure for failure in store.failures(study)}
    trials = [_trial(t, by_trial.get(t.number, []), failures.get(t.number)) for t in store.trials(study)]
    trials = [_doubted(trial) if trial.number in drifted else trial for trial in trials]
    if not trials:
        raise ValueError(f"study {study!r} has no trials yet; nothing to read")
    return StudyResults(
        spec=used,
        trials=_mark_front(trials),
        validations=validations,
        time_scale=info.time_scale or 1.0,
        environment=measured[0].measurement.environment if measured else {},
        provenance=info.provenance,
        validation_failures=_standing(store.validation_failures(study), validations),
        search_end=search_end(store, study),
    )


def _standing(
    failures: Sequence[ValidationFailure], validations: Sequence[ValidationResult]
) -> tuple[ValidationFailure, ...]:
    """The last failure of each trial and purpose, unless a later measurement has made up for it."""
    measured = {(v.trial, v.purpose): v.created for v in validations}
    last = {(f.trial, f.purpose): f for f in failures}
    return tuple(f for key, f in last.items() if f.created > measured.get(key, ""))


def search_end(store: Store, study: str) -> Stop | None:
    """See StudyResults.search_end; None also for a reason that a newer servetune gave."""
    return next((stop for stop in WORDS if stop == store.search_end(study)), None)


def _score(
    stored: StoredMeasurement, reference: Sequence[ProbeRecord], spec: StudySpec, scores: dict[int, Scored]
) -> None:
    """Probes are not part of a validation as a rule; its quality constraints are there only when it has some."""
    measurement = stored.measurement
    if stored.id not in scores and measurement.purpose in (*TRIALS, *VALIDATIONS):
        answers = reference if measurement.probes or measurement.purpose in TRIALS else ()
        scores[stored.id] = score(measurement, answers, spec)


def _trial(asked: AskedTrial, measured: Sequence[tuple[Measurement, Scored]], failure: Failure | None) -> TrialResult:
    """A measurement outranks what became of the trial afterwards: it was stored before anything else happened."""
    if measured:
        return _measured(asked.number, measured)
    if failure is not None:
        return _failed(failure)
    if asked.running:
        return TrialResult(asked.number, "running", asked.params, None, {}, None, None)
    return TrialResult(asked.number, "failed", asked.params, None, {}, None, None, reason="not_measured")


def _measured(number: int, measured: Sequence[tuple[Measurement, Scored]]) -> TrialResult:
    measurement, scored, missed, rungs = representative(measured)
    found = tuple(str(doubt) for doubt in scored.doubts)
    seconds = Counter[str]()
    for one, _ in measured:
        seconds.update(one.seconds)
    if (doubt := scored.disqualified) is not None:
        return TrialResult(
            number, "doubtful", measurement.config.knobs, None, {}, None, None, reason=doubt.name, detail=doubt.detail,
            seconds=dict(seconds), doubts=found, time_scale=measurement.time_scale,
        )  # fmt: skip
    return TrialResult(
        number=number,
        state="feasible" if scored.feasible else "infeasible",
        knobs=measurement.config.knobs,
        objectives=scored.objectives,
        constraints=scored.constraints,
        traffic=scored.traffic,
        quality=scored.quality,
        reason="stopped_early" if measurement.stopped else None,
        detail=measurement.stopped,
        seconds=dict(seconds),
        doubts=found,
        time_scale=measurement.time_scale,
        missed_scale=missed,
        rungs=rungs,
        engine_metrics=measurement.engine_metrics,
    )


def _doubted(trial: TrialResult) -> TrialResult:
    """A trial that was measured while the machine drifted; it was asked again under another number."""
    return TrialResult(
        trial.number, "doubtful", trial.knobs, None, {}, None, None, reason="drifted",
        detail="the machine drifted meanwhile", seconds=trial.seconds, doubts=trial.doubts, time_scale=trial.time_scale,
    )  # fmt: skip


def _failed(failure: Failure) -> TrialResult:
    return TrialResult(
        number=failure.trial,
        state="failed",
        knobs=failure.config.knobs,
        objectives=None,
        constraints={},
        traffic=None,
        quality=None,
        reason=failure.reason,
        detail=failure.detail,
        seconds=failure.seconds,
    )


def _mark_front(trials: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    values = [trial.objectives for trial in trials if trial.state == "feasible" and trial.objectives is not None]
    best = iter(non_dominated(np.array(values), DIRECTIONS).tolist())
    return tuple(replace(trial, on_front=trial.state == "feasible" and next(best)) for trial in trials)


def _validations(measured: Sequence[StoredMeasurement], scores: Mapping[int, Scored]) -> tuple[ValidationResult, ...]:
    """One that a doubt disqualifies neither holds nor misses; the calibration only finds a load, and is kept."""
    found = []
    for stored in measured:
        measurement = stored.measurement
        if measurement.purpose not in VALIDATIONS:
            continue
        scored = scores[stored.id]
        if scored.disqualified is not None and measurement.purpose != "calibration":
            continue
        # The calibration precedes every trial and runs the baseline, which is trial 0.
        trial = stored.trial if stored.trial is not None else 0
        where = (measurement.purpose, measurement.window, measurement.time_scale)
        what = (scored.traffic, scored.constraints, scored.objectives[2])
        found.append(ValidationResult(trial, *where, *what, stored.created))
    return tuple(found)
