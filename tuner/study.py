"""The study: ask -> measure -> score -> tell; reference and baseline first, finalists re-measured last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from engine.profile import Profile
from search_spaces.space import key
from tuner import search, stopping
from tuner.answers import QualityKey
from tuner.bench import Bench
from tuner.climb import TIME_SCALE, Climb, incumbent_scale
from tuner.errors import ConfigRejected, DoesNotFit, LaunchError
from tuner.examination import examine
from tuner.guide import Guide, guided
from tuner.knee import time_scale
from tuner.outcome import Outcome, Reporter, broken
from tuner.plan import Plan, make_plan
from tuner.resume import check_unchanged, held_lease
from tuner.scoring.probes import ProbeRecord
from tuner.sentinel import keep_watch
from tuner.serving import adapters
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement
from tuner.serving.testbed import Testbed
from tuner.spec import StudySpec
from tuner.store import SEARCH_END, Store
from tuner.traffic.profile import profile_of
from tuner.validation import validate

FIRST = "first"
"""Study attribute: what was given to be measured first, until it is asked: an interruption may come before."""
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
    spec: StudySpec,
    store: Store,
    testbed: Testbed,
    report: Reporter,
    environment: Mapping[str, Any],
    resume: bool,
    first: Sequence[Mapping[str, Any]] = (),
    profiler: Callable[[Plan], Profile] | None = None,
) -> None:
    """Run or resume the study to the end of its budget; every measurement is in `store` before it is scored.

    first: knobs of the first trials of a new study, see warm_start. profiler: measures the profile of the simulator
    that proposes trials of a new study; None: nothing is simulated.

    Raises ValueError for users' mistakes, a changed study file among them, and ServingError when not even the
    reference can be measured or MAX_BROKEN trials in a row broke for reasons outside their configuration.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan = make_plan(spec)
    _open_study(plan, store, environment, resume)
    with held_lease(store, spec.name) as renew:
        store.set_spec(spec.name, spec.model_dump_json())  # another budget or cost is one of finals and readers, too
        session = Session(Bench(plan, store, testbed, report, renew, environment), _optuna_study(plan, store))
        if first:
            session.study.set_user_attr(FIRST, [dict(knobs) for knobs in first])
        try:
            reference = session.bench.reference()
            _reconcile(session, reference)
            report.resumed(_earlier(session))
            scale = time_scale(session.bench)
            _search(session, reference, scale, profiler)
            validate(session.bench)
            if spec.budget.examine:
                examine(session.bench)
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
        "traffic": asdict(profile_of(plan.windows["tune"])),
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


def _reconcile(session: Session, reference: tuple[ProbeRecord, ...] | None) -> None:
    """Leave no trial RUNNING. What was begun is ended and told, given the reference; what was not is asked again."""
    for stale in session.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trial = _handle(session, stale)
        measured = _measurements_of(session, stale.number)
        if measured:
            if reference is not None:
                config, scale = measured[0].config, measured[0].time_scale
                session.bench.report.begin(f"trial {stale.number}, further")
                outcome = Climb(session.bench, reference).attempt(stale.number, config, scale, measured)
                whole = _measurements_of(session, stale.number)
                trial.set_user_attr(search.SECONDS, sum(sum(one.seconds.values()) for one in whole))
                _tell(session, trial, outcome, config)
            continue
        params = dict(stale.system_attrs.get("fixed_params", stale.params))
        _tell(session, trial, broken(search.INTERRUPTED, "the tuner was stopped"), session.bench.plan.config(params))
        kept = {name: stale.user_attrs[name] for name in (search.ARM, search.HOPE) if name in stale.user_attrs}
        session.study.enqueue_trial(params, user_attrs=kept)


def _handle(session: Session, frozen: FrozenTrial) -> optuna.Trial:
    """The trial as one that can still be told."""
    storage = session.bench.store.optuna_storage()
    study_id = storage.get_study_id_from_name(session.bench.study_name)
    return optuna.Trial(session.study, storage.get_trial_id_from_study_id_trial_number(study_id, frozen.number))


def _measurements_of(session: Session, number: int) -> list[Measurement]:
    return [
        stored.measurement
        for stored in session.bench.store.measurements(session.bench.study_name)
        if stored.trial == number and stored.measurement.purpose in ("baseline", "trial")
    ]


def _earlier(session: Session) -> dict[int, Outcome]:
    """What the study measured before this run."""
    done = session.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {
        t.number: Outcome(
            "measured", (t.values[0], t.values[1], t.values[2]), t.constraints, time_scale=t.user_attrs[TIME_SCALE]
        )
        for t in done
    }


def _search(
    session: Session,
    reference: tuple[ProbeRecord, ...],
    start: float,
    profiler: Callable[[Plan], Profile] | None,
) -> None:
    """Baseline first, then what was given, then trials until the budget is spent. start: the load of the first."""
    guide: Guide | None = None
    plan, study, climb = session.bench.plan, session.study, Climb(session.bench, reference)
    spec = plan.spec
    if _stop(session) is None:
        _ends(session, "interrupted")
    if not study.get_trials(deepcopy=False):
        _add_baseline(session, climb, start)
    if len(study.get_trials(deepcopy=False)) == 1:  # as far as an interrupted run came, nothing was asked yet
        guide = guided(session.bench, profiler, start)
        _enqueue(session, study.user_attrs.get(FIRST, ()))
    in_a_row = 0
    quality_key = partial(_quality_key, plan)
    keep_watch(session.bench, study, start)
    while (why := _stop(session)) is None:
        fits = partial(_fits, session.bench)
        if guide is not None:
            _enqueue_guided(session, guide, quality_key)
        proposal = search.ask(
            study, plan.space, plan.baseline, spec.seed, spec.budget.startup_trials, fits, quality_key
        )
        if proposal.refused:
            session.bench.report.note(f"{proposal.refused} proposals left out: they do not fit in memory")
        told = search.standing(study)
        session.bench.report.begin(f"trial {proposal.trial.number} ({search.searched(told) + 1}/{spec.budget.trials})")
        config = plan.config(proposal.knobs)
        quality = search.known_quality(told, plan.space, proposal.knobs, quality_key)
        outcome = climb.attempt(proposal.trial.number, config, incumbent_scale(told, start, quality))
        if proposal.replicate:
            proposal.trial.set_user_attr("replicate", True)
        _tell(session, proposal.trial, outcome, config)
        if guide is not None:
            guide.told(proposal.knobs, outcome, start)
        keep_watch(session.bench, study, start)
        in_a_row = in_a_row + 1 if outcome.state == "broken" else 0
        if in_a_row == MAX_BROKEN:
            _ends(session, "broken")
            raise LaunchError(f"{in_a_row} trials in a row broke; the last: {outcome.reason}: {outcome.detail}")
    _ends(session, why)
    session.bench.report.note(f"the search ended: {stopping.WORDS[why]}")


def _enqueue_guided(session: Session, guide: Guide, quality_key: QualityKey) -> None:
    """What the simulator would try next, where nothing else waits."""
    trials = search.standing(session.study)
    if search.waiting(trials):
        return
    told = search.seen(trials, session.bench.plan.space)
    while (knobs := guide.propose(told, quality_key)) is not None:
        if _fits(session.bench, knobs):
            session.study.enqueue_trial(knobs)
            return


def _enqueue(session: Session, wanted: Sequence[Mapping[str, Any]]) -> None:
    """Each configuration once, and none that cannot fit."""
    for knobs in {key(knobs): knobs for knobs in wanted if _fits(session.bench, knobs)}.values():
        session.study.enqueue_trial(dict(knobs))


def _quality_key(plan: Plan, knobs: Mapping[str, Any]) -> str:
    """A configuration that is none answers like no other."""
    try:
        return adapters.quality_key(plan.config(knobs))
    except (ConfigRejected, ValueError):
        return f"rejected {key(knobs)}"


def _fits(bench: Bench, knobs: Mapping[str, Any]) -> bool:
    """By arithmetic; what else is wrong with a configuration is its trial's outcome."""
    try:
        bench.check_fits(bench.plan.config(knobs))
    except DoesNotFit:
        return False
    except ConfigRejected:
        return True
    return True


def _ends(session: Session, why: stopping.Stop) -> None:
    """Keep why the search ends, or, as long as it goes on, why it will have ended if nothing more is kept."""
    session.study.set_user_attr(SEARCH_END, why)


def _stop(session: Session) -> stopping.Stop | None:
    budget, trials = session.bench.plan.spec.budget, session.study.get_trials(deepcopy=False)
    knobs = len(session.bench.plan.space.parameters) if budget.plateau else None
    return search.stop(trials, budget.trials, budget.seconds, knobs, session.study.user_attrs.get(search.DRIFTED, ()))


def _add_baseline(session: Session, climb: Climb, scale: float) -> None:
    """Trial 0 enters the study when it is measured: an interruption leaves nothing that would take its number."""
    plan = session.bench.plan
    config = plan.config(plan.baseline)
    session.bench.report.begin("baseline")
    outcome = climb.attempt(0, config, scale, _measurements_of(session, 0))
    session.study.add_trial(
        optuna.create_trial(
            state=STATES[outcome.state],
            params=dict(plan.baseline),
            distributions=search.distributions(plan.space, plan.baseline),
            values=outcome.objectives,
            constraints=outcome.ordered(plan),
            user_attrs=_attributes(outcome),
        )
    )
    _record(session, 0, outcome, config)


def _tell(session: Session, trial: optuna.Trial, outcome: Outcome, config: ServingConfig | None = None) -> None:
    """Constraints last but one and always the same ones in the same order; then the values or the state."""
    for name, value in _attributes(outcome).items():
        trial.set_user_attr(name, value)
    told = trial.constraints
    for name, value in outcome.ordered(session.bench.plan).items():
        if name not in told:
            trial.set_constraint(name, value)
    session.study.tell(trial, outcome.objectives, STATES[outcome.state])
    _record(session, trial.number, outcome, config)


def _attributes(outcome: Outcome) -> dict[str, Any]:
    """What a trial says besides its values."""
    said: dict[str, Any] = {} if outcome.reason is None else {"reason": outcome.reason}
    if outcome.time_scale is not None:
        said[TIME_SCALE] = outcome.time_scale
    if outcome.rungs:
        said[search.RUNGS] = [list(pair) for pair in outcome.rungs]
    return said


def _record(session: Session, number: int, outcome: Outcome, config: ServingConfig | None) -> None:
    if outcome.state != "measured":
        assert config is not None
        seconds = {"total": outcome.seconds}
        session.bench.store.save_failure(
            session.bench.study_name, number, outcome.reason or "", outcome.detail or "", seconds, config
        )
    session.bench.report.trial_ended(number, outcome)
