"""`tune verify`: a study's recommendation measured again beside the baseline, by turns, under the same requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.bench import Bench
from tuner.environment import file_hash
from tuner.errors import Doubtful, LaunchError, ServingError
from tuner.outcome import Reporter, disqualifying_doubt
from tuner.plan import Plan, make_plan
from tuner.results import StudyResults
from tuner.resume import held_lease
from tuner.scored import config_of
from tuner.serving.testbed import Load, Testbed
from tuner.spec import StudySpec
from tuner.store import Store
from tuner.stored import StoredVerification
from tuner.verification import PURPOSE, Verification, load_verifications

NEW = "new"
"""The window of traffic that the study did not know."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to verify. trial: the recommended one. trace: other traffic than the study's; window: of it, in seconds, or
    all. held_out: of the study's own traffic, the window that it held out, instead of the one that it tuned on.
    time_scale: times the recorded rate. rounds: replays of each configuration."""

    trial: int
    time_scale: float
    rounds: int
    trace: Path | None = None
    window: tuple[float, float] | None = None
    held_out: bool = False


def verify(
    results: StudyResults,
    question: Question,
    store: Store,
    testbed: Testbed,
    report: Reporter,
    environment: Mapping[str, Any],
) -> Verification:
    """Measure baseline and recommendation by turns (A, B, A, B, …), store every replay, and score them.

    The probes are asked with the recommendation's first replay. An engine that fails under the recommendation answers
    the question; one that does not start, or fails under the baseline, raises ServingError, and so does a replay that
    is not worth comparing even when repeated. Raises ValueError for users' mistakes.
    """
    plan = verification_plan(results.spec, question)
    window = NEW if question.trace is not None else "holdout" if question.held_out else "tune"
    load = plan.load("holdout" if question.held_out else "tune", question.time_scale)
    for note in _differences(results, plan, environment):
        report.note(note)
    with held_lease(store, plan.spec.name) as renew:
        bench = Bench(plan, store, testbed, report, renew)
        measured, failure = _rounds(bench, results, question, load)
    trace = plan.spec.traffic.trace
    about = StoredVerification(
        question.trial, window, question.time_scale, str(trace), file_hash(trace), plan.reference_key, measured, failure
    )
    store.save_verification(plan.spec.name, about)
    return load_verifications(store, plan.spec.name, results.spec)[-1]


def verification_plan(spec: StudySpec, question: Question) -> Plan:
    """The study's plan, over other traffic where the question has some. Raises ValueError naming key or file."""
    if question.trace is not None:
        traffic = {"trace": question.trace.resolve(), "tune_window": question.window, "holdout_window": None}
        spec = spec.model_copy(update={"traffic": spec.traffic.model_copy(update=traffic)})
    plan = make_plan(spec)
    if question.held_out and "holdout" not in plan.windows:
        raise ValueError("--window holdout: the study held no window out; expected tune")
    return plan


def _rounds(bench: Bench, results: StudyResults, question: Question, load: Load) -> tuple[tuple[int, ...], str | None]:
    """Ids of the measurements, and why the recommendation's engine failed, if it did."""
    first = max((stored.id for stored in bench.store.measurements(bench.study_name)), default=0)
    failure: str | None = None
    bench.reference()
    for number in range(question.rounds):
        for trial in dict.fromkeys((0, question.trial)):
            bench.report.begin(f"round {number + 1} of {question.rounds}: {'recommendation' if trial else 'baseline'}")
            config = config_of(bench.plan.spec, results.trials[trial].knobs)
            ask = number == 0 and trial == question.trial
            try:
                measured = bench.measure(trial, config, load, PURPOSE, final=ask)
            except LaunchError:
                raise
            except ServingError as error:
                if trial != question.trial:
                    raise
                failure = f"{error.reason}: {error}"
                break
            if (doubt := disqualifying_doubt(bench.plan, measured)) is not None:
                raise Doubtful(f"nothing is verified: {doubt.name}: {doubt.detail}; {doubt.advice}")
        if failure is not None:
            break
    return _sound(bench, first), failure


def _sound(bench: Bench, first: int) -> tuple[int, ...]:
    """Ids of this verification's replays, without those that a doubt had repeated."""
    return tuple(
        stored.id
        for stored in bench.store.measurements(bench.study_name)
        if stored.id > first
        and stored.measurement.purpose == PURPOSE
        and disqualifying_doubt(bench.plan, stored.measurement) is None
    )


def _differences(results: StudyResults, plan: Plan, environment: Mapping[str, Any]) -> list[str]:
    """What else has changed since the study, in words."""
    before = dict(results.provenance.get("files", {}))
    notes = [
        f"{key}: the files have changed since the study"
        for key in before
        if key != "traffic.trace" and plan.hashes.get(key) != before[key]
    ]
    changed = [key for key in ("cpu", "cpu_cores", "gpus") if key in results.environment]
    changed = [key for key in changed if results.environment[key] != environment.get(key)]
    return notes + [
        f"{key}: {environment.get(key)}, where the study ran on {results.environment[key]}" for key in changed
    ]
