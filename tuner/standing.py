"""How far a study is, read from its database while it runs or later."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import yaml

from tuner.results import StudyResults, load_results, search_end
from tuner.resume import runner_alive
from tuner.search import searched
from tuner.spec import parse_spec
from tuner.stopping import Stop
from tuner.store import Store
from tuner.stored import StoredMeasurement
from tuner.validation import next_turn

Phase = Literal["load", "search", "finalists", "finished", "stopped"]
TRIAL_PURPOSES = ("baseline", "trial")


@dataclass(frozen=True, slots=True)
class Standing:
    """phase: load (finding it), search, finalists; finished, or stopped before its end, when nobody runs it.

    trials: by state. asked, budget: trials that ended, and that may, besides the baseline. goodput: requests/s.
    eta_seconds: of the search, from the pace so far; None before two trials, and when it is over. search_end: why the
    search ended; None before its end, and of a study that does not say.
    """

    study: str
    phase: Phase
    runner: str | None
    trials: Mapping[str, int]
    asked: int
    budget: int
    time_scale: float | None
    baseline_goodput: float | None
    best_goodput: float | None
    best_trial: int | None
    eta_seconds: float | None
    created: str
    search_end: Stop | None = None


def standing(store: Store, name: str) -> Standing:
    """Raises ValueError for an unknown study."""
    info, runner = store.study_info(name), runner_alive(store, name)
    if not store.trials(name):
        budget = parse_spec(yaml.safe_load(info.spec), source=f"study {name!r}", base=Path("/")).budget
        first: Phase = "stopped" if runner is None else "load"
        ended = search_end(store, name) if runner is None else None
        return Standing(
            name, first, runner, {}, 0, budget.trials, info.time_scale, None, None, None, None, info.created, ended
        )
    results = load_results(store, name)
    measured = [stored for stored in store.measurements(name) if stored.measurement.purpose in TRIAL_PURPOSES]
    asked = searched(store.optuna_trials(name))
    left = results.spec.budget.trials - asked
    feasible = [(t.objectives[0], t.number) for t in results.trials if t.state == "feasible" and t.objectives]
    best = max(feasible, key=lambda pair: (pair[0], -pair[1]), default=None)
    phase = _phase(results, info.time_scale is not None, left, runner is not None)
    return Standing(
        study=name,
        phase=phase,
        runner=runner,
        trials=dict(Counter(trial.state for trial in results.trials)),
        asked=asked,
        budget=results.spec.budget.trials,
        time_scale=info.time_scale,
        baseline_goodput=_goodput(results, 0),
        best_goodput=None if best is None else best[0],
        best_trial=None if best is None else best[1],
        eta_seconds=_eta(measured, left) if phase == "search" else None,
        created=info.created,
        search_end=None if phase in ("load", "search") else results.search_end,
    )


def _goodput(results: StudyResults, number: int) -> float | None:
    found = next((t.objectives for t in results.trials if t.number == number), None)
    return None if found is None else found[0]


def _phase(results: StudyResults, load_found: bool, left: int, running: bool) -> Phase:
    if running:
        if not load_found:
            return "load"
        return "search" if left > 0 and results.search_end in (None, "interrupted") else "finalists"
    return "finished" if next_turn(results) is None else "stopped"


def _eta(measured: Sequence[StoredMeasurement], left: int) -> float | None:
    """Trials left times the median gap between trials so far, seconds."""
    moments = [datetime.fromisoformat(stored.created) for stored in measured]
    gaps = [(later - earlier).total_seconds() for earlier, later in zip(moments, moments[1:], strict=False)]
    return statistics.median(gaps) * left if gaps and left > 0 else None
