"""What an earlier study of the same model on the same machine teaches a new one: what to measure first.

Only configurations are taken over, never figures: traffic, SLOs and load may be others, so each is measured anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tuner.plan import Plan
from tuner.recommend import recommend
from tuner.results import StudyResults, load_results
from tuner.store import Store

SAME_MACHINE = ("cpu", "gpus")
"""Keys of the environment that must be equal."""


def first_trials(database: Path, plan: Plan, machine: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The recommendation of an earlier run and its runners-up, as far as this study's space has them, best first.

    database: of the run. Raises ValueError when there is none, or of another model or machine.
    """
    results = _results(database)
    if (difference := _difference(results, plan, machine)) is not None:
        raise ValueError(f"--warm-start {database.parent}: {difference}")
    found = recommend(results)
    ranked = [trial.knobs for trial in (found.trial, *found.runners_up) if trial is not None]
    wanted = [_fitted(knobs, plan) for knobs in ranked]
    return [knobs for index, knobs in enumerate(wanted) if knobs != plan.baseline and knobs not in wanted[:index]]


def offers(databases: Iterable[Path], plan: Plan, machine: Mapping[str, Any]) -> list[Path]:
    """Directories of the runs that this study could begin with, the latest last."""
    found = []
    for database in sorted(databases, key=lambda path: path.stat().st_mtime):
        try:
            if first_trials(database, plan, machine):
                found.append(database.parent)
        except ValueError:
            continue  # another model's, or not finished, or of a version that cannot be read
    return found


def _results(database: Path) -> StudyResults:
    if not database.is_file():
        raise ValueError(f"--warm-start {database.parent}: expected the directory of a run, with {database.name}")
    with Store(database, create=False) as store:
        names = store.study_names()
        if len(names) != 1:
            raise ValueError(f"{database}: holds {len(names)} studies, expected one")
        return load_results(store, names[0])


def _difference(results: StudyResults, plan: Plan, machine: Mapping[str, Any]) -> str | None:
    """Why what was found there says little of this study."""
    if results.provenance.get("files", {}).get("model") != plan.hashes["model"]:
        return f"it tuned another model, {results.spec.model}"
    if results.spec.engine.name != plan.spec.engine.name:
        return f"it tuned another engine, {results.spec.engine.name}"
    for key in SAME_MACHINE:
        if results.environment.get(key) != machine.get(key):
            return f"it ran on another machine ({key}: {results.environment.get(key)}, here {machine.get(key)})"
    return None


def _fitted(knobs: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The baseline of this study with those of the knobs that its space has, and what that makes active."""
    space = plan.space
    known = {name: value for name, value in knobs.items() if name in space.parameters}
    allowed = {name: value for name, value in known.items() if space.parameters[name].contains(value)}
    return space.active({**space.least(), **plan.baseline, **allowed})
