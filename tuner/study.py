"""The study: ask -> measure -> score -> tell; reference and baseline first, finalists re-measured last."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tuner import search
from tuner.bench import Bench
from tuner.errors import LaunchError, ServingError
from tuner.knee import time_scale
from tuner.outcome import Outcome, Reporter, broken, disqualifying_doubt, failed, judge
from tuner.plan import Plan, make_plan
from tuner.recommend import held, recommend
from tuner.reference import cache_reference, cached_reference
from tuner.results import StudyResults, load_results
from tuner.resume import check_unchanged, held_lease
from tuner.scoring.probes import ProbeRecord
from tuner.serving import adapters
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement, Purpose
from tuner.serving.testbed import Load, Testbed
from tuner.spec import StudySpec
from tuner.store import Store
from tuner.stored import ValidationFailure

MAX_BROKEN = 3
"""Trials in a row that may end for reasons outside their configuration."""
STATES = {"measured": TrialState.COMPLETE, "failed": TrialState.PRUNED, "broken": TrialState.FAIL}
"""Samplers do not see FAIL: what a configuration did wrong is PRUNED with its constraints, so that TPE learns it."""


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a study, from its lease to its release."""

    bench: Bench
    study: optuna.Study


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
        session = Session(Bench(plan, store, testbed, report, renew), _optuna_study(plan, store))
        try:
            reference = _reference(session)
            _reconcile(session, reference)
            report.resumed(_earlier(session))
            scale = time_scale(session.bench)
            _search(session, reference, scale)
            _validate(session, scale)
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
    plan, store = session.bench.plan, session.bench.store
    if (known := store.reference(plan.reference_key)) is not None:
        return known
    cache = plan.spec.quality.reference_cache
    records = None if cache is None else cached_reference(cache, plan.reference_key)
    if records is None:
        session.bench.report.begin("reference")
        records = session.bench.testbed.answer(plan.reference, plan.probes)
        if cache is not None:
            cache_reference(cache, plan.reference_key, records)
    store.save_reference(plan.reference_key, records)
    return records


def _reconcile(session: Session, reference: tuple[ProbeRecord, ...] | None) -> None:
    """Leave no trial RUNNING. What was measured is told, given the reference; what was not is asked again."""
    for stale in session.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trial = _handle(session, stale)
        measured = _measurement_of(session, stale.number)
        if measured is not None:
            if reference is not None:
                trial.set_user_attr(search.SECONDS, sum(measured.seconds.values()))
                _tell(session, trial, judge(session.bench.plan, measured, reference), measured.config)
            continue
        params = dict(stale.system_attrs.get("fixed_params", stale.params))
        _tell(session, trial, broken(search.INTERRUPTED, "the tuner was stopped"), session.bench.plan.config(params))
        session.study.enqueue_trial(params)


def _handle(session: Session, frozen: FrozenTrial) -> optuna.Trial:
    """The trial as one that can still be told."""
    storage = session.bench.store.optuna_storage()
    study_id = storage.get_study_id_from_name(session.bench.study_name)
    return optuna.Trial(session.study, storage.get_trial_id_from_study_id_trial_number(study_id, frozen.number))


def _measurement_of(session: Session, number: int) -> Measurement | None:
    """The latest, as only the first may be doubtful."""
    for stored in reversed(session.bench.store.measurements(session.bench.study_name)):
        if stored.trial == number and stored.measurement.purpose in ("baseline", "trial"):
            return stored.measurement
    return None


def _earlier(session: Session) -> dict[int, Outcome]:
    """What the study measured before this run."""
    done = session.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {t.number: Outcome("measured", (t.values[0], t.values[1], t.values[2]), t.constraints) for t in done}


def _search(session: Session, reference: tuple[ProbeRecord, ...], scale: float) -> None:
    """Baseline first, then trials until the budget is spent."""
    plan, study = session.bench.plan, session.study
    spec, load = plan.spec, plan.load("tune", scale)
    if not study.get_trials(deepcopy=False):
        _add_baseline(session, reference, load)
    in_a_row = 0
    while not search.exhausted(study.get_trials(deepcopy=False), spec.budget.trials, spec.budget.seconds):
        proposal = search.ask(study, plan.space, plan.baseline, spec.seed, spec.budget.startup_trials)
        spent = search.searched(study.get_trials(deepcopy=False))
        session.bench.report.begin(f"trial {proposal.trial.number} ({spent + 1}/{spec.budget.trials})")
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
    plan = session.bench.plan
    config = plan.config(plan.baseline)
    session.bench.report.begin("baseline")
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
    session.bench.renew_lease()  # outside: a lease that another runner has taken over is no failure of this trial
    try:
        adapters.engine_config(config)
        measured = session.bench.measure(number, config, load, purpose)
        return judge(session.bench.plan, measured, reference)
    except LaunchError as error:
        return broken(error.reason, str(error), time.monotonic() - start)
    except ServingError as error:
        return failed(error.reason, str(error), time.monotonic() - start)
    except Exception as error:  # noqa: BLE001 - a defect met in one trial must not lose the study
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
        return broken("internal_error", where, time.monotonic() - start)


def _tell(session: Session, trial: optuna.Trial, outcome: Outcome, config: ServingConfig | None = None) -> None:
    """Constraints last but one and always the same ones in the same order; then the values or the state."""
    if outcome.reason is not None:
        trial.set_user_attr("reason", outcome.reason)
    told = trial.constraints
    for name, value in outcome.ordered(session.bench.plan).items():
        if name not in told:
            trial.set_constraint(name, value)
    session.study.tell(trial, outcome.objectives, STATES[outcome.state])
    _record(session, trial.number, outcome, config)


def _record(session: Session, number: int, outcome: Outcome, config: ServingConfig | None) -> None:
    if outcome.state != "measured":
        assert config is not None
        seconds = {"total": outcome.seconds}
        session.bench.store.save_failure(
            session.bench.study_name, number, outcome.reason or "", outcome.detail or "", seconds, config
        )
    session.bench.report.trial_ended(number, outcome)


def _validate(session: Session, scale: float) -> None:
    """Measure the baseline and the finalists again: same window, held-out window; the chosen one at the recorded rate.

    Winners of a noisy race disappoint: when no finalist holds, the next runners-up are tried.
    """
    for failure in _results(session).validation_failures:
        _measure_again(session, failure.trial, (failure.purpose,), scale)
    best, finalists = recommend(_results(session)), session.bench.plan.spec.budget.finalists
    ranked = [t.number for t in (best.trial, *best.runners_up) if finalists and t is not None and t.number != 0]
    tests: tuple[Purpose, ...] = ("repeat", "holdout") if "holdout" in session.bench.plan.windows else ("repeat",)
    _measure_again(session, 0, tests, scale)
    for tested, number in enumerate(ranked):
        if tested >= finalists and held(_results(session)) - {0}:
            break
        _measure_again(session, number, tests, scale)
    chosen = recommend(_results(session)).trial
    for number in dict.fromkeys((0, chosen.number if chosen is not None else 0)):
        _measure_again(session, number, ("recorded_rate",), scale)


def _measure_again(session: Session, number: int, tests: tuple[Purpose, ...], scale: float) -> None:
    """What of `tests` this trial has not passed through yet; one that failed earlier is tried once more."""
    results = _results(session)
    done = {(v.trial, v.purpose) for v in results.validations}
    config = session.bench.plan.config(results.trials[number].knobs)
    for purpose in tests:
        if (number, purpose) not in done:
            _validate_one(session, number, purpose, scale, config)


def _results(session: Session) -> StudyResults:
    return load_results(session.bench.store, session.bench.study_name)


def _validate_one(session: Session, number: int, purpose: Purpose, scale: float, config: ServingConfig) -> None:
    """Measure one configuration again. A failure is stored: it counts until a resumed study has measured this."""
    bench, time_scale = session.bench, 1.0 if purpose == "recorded_rate" else scale
    window = "holdout" if purpose == "holdout" else "tune"
    bench.report.begin(f"{purpose.replace('_', ' ')} of trial {number}")
    try:
        measured = bench.measure(number, config, bench.plan.load(window, time_scale), purpose)
    except ServingError as error:
        reason, detail = error.reason, str(error)
    else:
        if (doubt := disqualifying_doubt(bench.plan, measured)) is None:
            return
        reason, detail = doubt.name, doubt.detail
    failure = ValidationFailure(number, purpose, window, time_scale, reason, detail)
    bench.store.save_validation_failure(bench.study_name, failure)
    bench.report.note(f"{purpose} of trial {number} failed: {reason}: {detail}")
