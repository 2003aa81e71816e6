"""The study: ask -> measure -> score -> tell; reference and baseline first, finalists re-measured last."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tuner import search
from tuner.early_stop import slo_unreachable
from tuner.errors import LaunchError, ServingError
from tuner.outcome import Outcome, Reporter, broken, failed, judge, misses_an_slo
from tuner.plan import Plan, make_plan
from tuner.recommend import recommend
from tuner.results import load_results
from tuner.resume import check_unchanged, held_lease
from tuner.scoring.quality import ProbeRecord
from tuner.serving import adapters
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement, Purpose
from tuner.serving.testbed import Load, Testbed
from tuner.spec import StudySpec
from tuner.store import Store

LADDER = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
"""Time scales at which the baseline is tried until it misses an SLO."""
LAUNCHES = 2
"""A process that does not come up is tried this often before it counts as broken."""
MAX_BROKEN = 3
"""Trials in a row that may end for reasons outside their configuration."""
STOPPABLE = ("calibration", "baseline", "trial")
"""What may stop early when its SLOs are out of reach; validations show how bad it gets."""
STATES = {"measured": TrialState.COMPLETE, "failed": TrialState.PRUNED, "broken": TrialState.FAIL}
"""Samplers do not see FAIL: what a configuration did wrong is PRUNED with its constraints, so that TPE learns it."""


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a study, from its lease to its release."""

    plan: Plan
    store: Store
    testbed: Testbed
    report: Reporter
    study: optuna.Study
    renew_lease: Callable[[], None]

    @property
    def name(self) -> str:
        return self.plan.spec.name


def run_study(
    spec: StudySpec, store: Store, testbed: Testbed, report: Reporter, environment: Mapping[str, Any], resume: bool
) -> None:
    """Run or resume the study to the end of its budget; every measurement is in `store` before it is scored.

    Raises ValueError for users' mistakes, a changed study file among them, and ServingError when not even the
    reference can be measured or MAX_BROKEN trials in a row broke for reasons outside their configuration.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan = make_plan(spec)
    _open_study(plan, store, environment, resume)
    with held_lease(store, spec.name) as renew:
        session = Session(plan, store, testbed, report, _optuna_study(plan, store), renew)
        try:
            reference = _reference(session)
            _reconcile(session, reference)
            report.resumed(_earlier(session))
            time_scale = _time_scale(session)
            _search(session, reference, time_scale)
            _validate(session, time_scale)
        finally:
            _reconcile(session, None)


def _open_study(plan: Plan, store: Store, environment: Mapping[str, Any], resume: bool) -> None:
    """Create the study's row, or make sure that it is the same study."""
    text = plan.spec.model_dump_json()
    if resume and plan.spec.name in store.study_names():
        check_unchanged(store.study_info(plan.spec.name), plan)
        return
    fixed = plan.spec.traffic.time_scale
    scale = None if fixed == "auto" else fixed
    provenance = {
        "files": dict(plan.hashes),
        "trace": dict(plan.trace_provenance),
        "reference_key": plan.reference_key,
        "environment": dict(environment),
    }
    store.create_study(plan.spec.name, text, plan.space.fingerprint, provenance, scale)


def _optuna_study(plan: Plan, store: Store) -> optuna.Study:
    return optuna.create_study(
        study_name=plan.spec.name,
        storage=store.optuna_storage(),
        sampler=search.open_sampler(),
        directions=search.directions(),
        load_if_exists=True,
    )


def _reference(session: Session) -> tuple[ProbeRecord, ...]:
    """Answers of the full-precision reference, from the store if it has answered these probes before."""
    plan, store = session.plan, session.store
    if (known := store.reference(plan.reference_key)) is not None:
        return known
    session.report.begin("reference")
    records = session.testbed.answer(plan.reference, plan.probes)
    store.save_reference(plan.reference_key, records)
    return records


def _reconcile(session: Session, reference: tuple[ProbeRecord, ...] | None) -> None:
    """Leave no trial RUNNING. What was measured is told, given the reference; what was not is asked again."""
    for stale in session.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trial = _handle(session, stale)
        measured = _measurement_of(session, stale.number)
        if measured is not None:
            if reference is not None:
                _tell(session, trial, judge(session.plan, measured, reference))
            continue
        params = dict(stale.system_attrs.get("fixed_params", stale.params))
        _tell(session, trial, broken(search.INTERRUPTED, "the tuner was stopped"), session.plan.config(params))
        session.study.enqueue_trial(params)


def _handle(session: Session, frozen: FrozenTrial) -> optuna.Trial:
    """The trial as one that can still be told."""
    storage = session.store.optuna_storage()
    study_id = storage.get_study_id_from_name(session.name)
    return optuna.Trial(session.study, storage.get_trial_id_from_study_id_trial_number(study_id, frozen.number))


def _measurement_of(session: Session, number: int) -> Measurement | None:
    for stored in session.store.measurements(session.name):
        if stored.trial == number and stored.measurement.purpose in ("baseline", "trial"):
            return stored.measurement
    return None


def _earlier(session: Session) -> dict[int, Outcome]:
    """What the study measured before this run."""
    done = session.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {t.number: Outcome("measured", (t.values[0], t.values[1], t.values[2]), t.constraints) for t in done}


def _time_scale(session: Session) -> float:
    """How much faster than recorded the trials replay: given, found earlier, or found now."""
    if (known := session.store.study_info(session.name).time_scale) is not None:
        return known
    done = {
        stored.measurement.time_scale: stored.measurement
        for stored in session.store.measurements(session.name)
        if stored.measurement.purpose == "calibration"
    }
    config = session.plan.config(session.plan.baseline)
    for scale in LADDER:
        if scale not in done:
            session.report.begin(f"calibration x{scale:g}")
            done[scale] = _measure(session, None, config, session.plan.load("tune", scale), "calibration")
        if misses := misses_an_slo(session.plan, done[scale]):
            break
    session.store.set_time_scale(session.name, scale)
    why = "the first step at which the baseline misses an SLO" if misses else "where the baseline still holds its SLOs"
    session.report.note(f"load: {scale:g} times the recorded rate, {why}")
    return scale


def _search(session: Session, reference: tuple[ProbeRecord, ...], time_scale: float) -> None:
    """Baseline first, then trials until the budget is spent."""
    plan, study = session.plan, session.study
    spec, load = plan.spec, plan.load("tune", time_scale)
    if not study.get_trials(deepcopy=False):
        _add_baseline(session, reference, load)
    in_a_row = 0
    while not search.exhausted(study.get_trials(deepcopy=False), spec.budget.trials, spec.budget.seconds):
        proposal = search.ask(study, plan.space, plan.baseline, spec.seed, spec.budget.startup_trials)
        spent = search.searched(study.get_trials(deepcopy=False))
        session.report.begin(f"trial {proposal.trial.number} ({spent + 1}/{spec.budget.trials})")
        config = plan.config(proposal.knobs)
        outcome = _attempt(session, proposal.trial.number, config, load, reference)
        if proposal.replicate:
            proposal.trial.set_user_attr("replicate", True)
        _tell(session, proposal.trial, outcome, config)
        in_a_row = in_a_row + 1 if outcome.state == "broken" else 0
        if in_a_row == MAX_BROKEN:
            raise LaunchError(f"{in_a_row} trials in a row broke; the last: {outcome.reason}: {outcome.detail}")


def _add_baseline(session: Session, reference: tuple[ProbeRecord, ...], load: Load) -> None:
    """Trial 0 enters the study when it is measured: an interruption leaves nothing that would take its number."""
    plan = session.plan
    config = plan.config(plan.baseline)
    session.report.begin("baseline")
    if (earlier := _measurement_of(session, 0)) is not None:
        outcome = judge(plan, earlier, reference)
    else:
        outcome = _attempt(session, 0, config, load, reference)
    session.study.add_trial(
        optuna.create_trial(
            state=STATES[outcome.state],
            params=dict(plan.baseline),
            distributions=search.distributions(plan.space, plan.baseline),
            values=outcome.objectives,
            constraints=outcome.ordered(plan),
            user_attrs={} if outcome.reason is None else {"reason": outcome.reason},
        )
    )
    _record(session, 0, outcome, config)


def _attempt(
    session: Session, number: int, config: ServingConfig, load: Load, reference: tuple[ProbeRecord, ...]
) -> Outcome:
    """Measure and judge one configuration. Whatever goes wrong is the outcome; only the user's Ctrl-C gets through."""
    purpose: Purpose = "trial" if number else "baseline"
    start = time.monotonic()
    try:
        adapters.engine_config(config)
        measured = _measure(session, number, config, load, purpose)
        return judge(session.plan, measured, reference)
    except LaunchError as error:
        return broken(error.reason, str(error), time.monotonic() - start)
    except ServingError as error:
        return failed(error.reason, str(error), time.monotonic() - start)
    except Exception as error:  # noqa: BLE001 - a defect met in one trial must not lose the study
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
        return broken("internal_error", where, time.monotonic() - start)


def _measure(session: Session, trial: int | None, config: ServingConfig, load: Load, purpose: Purpose) -> Measurement:
    """Measure and store, raw. Probes are asked once per quality key and study, and copied from then on."""
    session.renew_lease()
    plan, store = session.plan, session.store
    quality_key = adapters.quality_key(config)
    known = store.quality_records(session.name, quality_key)
    ask_probes = known is None and purpose != "calibration"
    stop = slo_unreachable(load.requests, plan.slos, load.time_scale) if purpose in STOPPABLE else None
    for launch in range(LAUNCHES):
        try:
            probes = plan.probes if ask_probes else None
            measured = session.testbed.measure(config, load, purpose=purpose, probes=probes, stop=stop)
            break
        except LaunchError:
            if launch == LAUNCHES - 1:
                raise
    if known is not None and purpose != "calibration":
        measured = replace(measured, probes=known)
    store.save_measurement(session.name, trial, measured, quality_key)
    return measured


def _tell(session: Session, trial: optuna.Trial, outcome: Outcome, config: ServingConfig | None = None) -> None:
    """Constraints last but one and always the same ones in the same order; then the values or the state."""
    if outcome.reason is not None:
        trial.set_user_attr("reason", outcome.reason)
    told = trial.constraints
    for name, value in outcome.ordered(session.plan).items():
        if name not in told:
            trial.set_constraint(name, value)
    session.study.tell(trial, outcome.objectives, STATES[outcome.state])
    _record(session, trial.number, outcome, config)


def _record(session: Session, number: int, outcome: Outcome, config: ServingConfig | None) -> None:
    if outcome.state != "measured":
        assert config is not None
        seconds = {"total": outcome.seconds}
        session.store.save_failure(session.name, number, outcome.reason or "", outcome.detail or "", seconds, config)
    session.report.trial_ended(number, outcome)


def _validate(session: Session, time_scale: float) -> None:
    """Measure the finalists and the baseline again: same window, held-out window, and recorded rate."""
    results = load_results(session.store, session.name)
    best = recommend(results)
    feasible = [trial.number for trial in (best.trial, *best.runners_up) if trial is not None]
    finalists = [number for number in feasible if number != 0][: session.plan.spec.budget.finalists]
    done = {(v.trial, v.purpose) for v in results.validations}
    todo: list[tuple[int, Purpose, Load]] = []
    for number in dict.fromkeys((0, *finalists)):
        todo.append((number, "repeat", session.plan.load("tune", time_scale)))
        if "holdout" in session.plan.windows:
            todo.append((number, "holdout", session.plan.load("holdout", time_scale)))
    for number in dict.fromkeys((0, *finalists[:1])):
        todo.append((number, "recorded_rate", session.plan.load("tune", 1.0)))
    for number, purpose, load in [entry for entry in todo if entry[:2] not in done]:
        session.report.begin(f"{purpose.replace('_', ' ')} of trial {number}")
        config = session.plan.config(results.trials[number].knobs)
        try:
            _measure(session, number, config, load, purpose)
        except ServingError as error:
            session.report.note(f"{purpose} of trial {number} failed: {error.reason}: {error}")
