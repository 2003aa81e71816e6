"""What would be recommended under other SLOs, floors, tail or cost: stored records scored again, without an engine."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.yaml_file import found, read_mapping
from tuner.recommend import TESTING, Recommendation, held, recommend, stands
from tuner.results import TRIALS, StudyResults, TrialResult, load_results
from tuner.scored import Scored, score
from tuner.scoring.probes import ProbeRecord
from tuner.serving.measurement import Measurement
from tuner.spec import StudySpec, flat, parse_spec
from tuner.store import Store
from tuner.worth import replays_of, shown

SECTIONS = ("slos", "quality", "tail", "cost")
FLOORS = ("floors", "default_floor")
"""What of a study file says how records are scored; of its quality section, these."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One constraint: replays of trials that miss it as the study was scored, and as it is scored now, of those that
    were measured as far as it asks (a replay that was stopped answered no probes)."""

    name: str
    missed_before: int
    missed_after: int
    measured: int


@dataclass(frozen=True, slots=True)
class WhatIf:
    """before, after: the recommendations by the study's own file, and by the changed one; results: of the changed one.

    changes: dotted keys of the study file -> (old, new). old_missed: what the old recommendation misses now, by how
    much; empty where there was none. holds: it still meets everything; None where there was none. unknown: in words,
    what scoring again cannot tell.
    """

    before: Recommendation
    after: Recommendation
    results: StudyResults
    changes: Mapping[str, tuple[Any, Any]]
    bindings: tuple[Binding, ...]
    old_missed: Mapping[str, float]
    holds: bool | None
    unknown: tuple[str, ...]

    @property
    def same(self) -> bool:
        """The same trial is recommended, or none both times."""
        return _number(self.before) == _number(self.after)


def whatif(store: Store, study: str, path: Path) -> WhatIf:
    """Score a study again with what `path` says: a study file, of which only the sections that score count, or a file
    of those sections alone, in which what is not named stays and `null` takes a bound away (RFC 7386).

    Raises ValueError: one line naming the file, the key, and what was expected.
    """
    old = load_results(store, study)
    slices = {name.removeprefix("quality:") for trial in old.trials for name in trial.constraints if _quality(name)}
    spec = changed_spec(old.spec, path, slices)
    try:
        new = load_results(store, study, spec)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    before, after = recommend(old), recommend(new)
    missed, changes = _missed(new, before), _changes(old.spec, spec)
    replays = [stored.measurement for stored in store.measurements(study) if stored.measurement.purpose in TRIALS]
    reference = store.reference(str(store.study_info(study).provenance.get("reference_key", ""))) or ()
    return WhatIf(
        before=before,
        after=after,
        results=new,
        changes=changes,
        bindings=_bindings(replays, reference, old.spec, spec),
        old_missed=missed,
        holds=None if before.trial is None else not missed and stands(new, _trial(new, before.trial.number)),
        unknown=() if all(key.startswith("cost") for key in changes) else tuple(_unknown(replays, old, new, after)),
    )


def changed_spec(old: StudySpec, path: Path, slices: Collection[str]) -> StudySpec:
    """The study's file with the sections of `path` in place. slices: those that the stored probes have."""
    values = read_mapping(path)
    base = old.model_dump(mode="json")
    if any(key in StudySpec.model_fields and key not in SECTIONS for key in values):
        given = parse_spec(values, source=str(path), base=path.parent).model_dump(mode="json")
        new = base | {key: given[key] for key in SECTIONS if key != "quality"}
        new["quality"] = base["quality"] | {key: given["quality"][key] for key in FLOORS}
    else:
        _check_sections(values, old, path)
        new = _merged(base, values)
    spec = parse_spec(new, source=str(path), base=Path("/"))
    for name in spec.quality.floors:
        _check_known(path, f"quality.floors.{name}", name, slices, "the stored probes have")
    return spec


def _check_sections(values: Mapping[str, Any], old: StudySpec, path: Path) -> None:
    for key in values:
        _check_known(path, str(key), str(key), SECTIONS, "expected a study file, or of it")
    for section, known in (("slos", tuple(old.slos)), ("quality", FLOORS)):
        given = values.get(section, {})
        if not isinstance(given, dict):
            raise ValueError(f"{path}: {section}: expected a mapping, found {found(given)}")
        for key in given:
            words = "the study's classes are" if section == "slos" else "scoring again can change"
            _check_known(path, f"{section}.{key}", str(key), known, words)


def _check_known(path: Path, where: str, name: str, known: Collection[str], words: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"{words} {', '.join(sorted(known)) or 'none'}"
        raise ValueError(f"{path}: {where}: unknown; {hint}")


def _merged(base: Any, patch: Any) -> Any:
    """JSON Merge Patch, RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged


def _changes(old: StudySpec, new: StudySpec) -> dict[str, tuple[Any, Any]]:
    before, after = (flat(spec.model_dump(mode="json", include=set(SECTIONS))) for spec in (old, new))
    keys = dict.fromkeys([*before, *after])
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _bindings(
    replays: Sequence[Measurement], reference: Sequence[ProbeRecord], old: StudySpec, new: StudySpec
) -> tuple[Binding, ...]:
    before = [score(replay, reference, old) for replay in replays]
    after = [score(replay, reference, new) for replay in replays]
    found = []
    for name in sorted({name for scored in before + after for name in scored.constraints}):
        counts = [[v > 0 for v in _values(scored, name)] for scored in (before, after)]
        found.append(Binding(name, sum(counts[0]), sum(counts[1]), len(counts[1])))
    return tuple(found)


def _values(replays: Sequence[Scored], name: str) -> list[float]:
    """A constraint in the replays that were measured as far as it asks."""
    asked = [scored for scored in replays if scored.quality is not None or not _quality(name)]
    return [scored.constraints[name] for scored in asked if name in scored.constraints]


def _missed(new: StudyResults, before: Recommendation) -> dict[str, float]:
    """What the old recommendation misses now, in its trial or, for one purpose, wherever it was measured again."""
    if before.trial is None:
        return {}
    number = before.trial.number
    trial = _trial(new, number)
    measured = [] if stands(new, trial) else [trial.constraints]
    for purpose in TESTING:
        tests = replays_of(new, number, purpose)
        if tests and shown(new, number, purpose) is None:
            misses = (test for test in tests if not test.holds)
            measured.append(min(misses, key=lambda test: test.time_scale).constraints)
    missed: dict[str, float] = {}
    for constraints in measured:
        missed |= {name: max(value, missed.get(name, 0.0)) for name, value in constraints.items() if value > 0}
    return missed


def _trial(results: StudyResults, number: int) -> TrialResult:
    return next(trial for trial in results.trials if trial.number == number)


def _unknown(replays: Sequence[Measurement], old: StudyResults, new: StudyResults, after: Recommendation) -> list[str]:
    words = []
    if stopped := sum(replay.stopped is not None for replay in replays):
        words.append(
            f"{stopped} of {len(replays)} replays ended early because the old SLOs were out of reach. They count as "
            "missed and answered no probes; under looser bounds a whole replay might have held."
        )
    if old.spec.traffic.time_scale == "auto":
        words.append(
            f"The loads that were tried, from {old.time_scale:g} times the recorded rate, were found by the old SLOs: "
            "what a configuration would hold at others is not known."
        )
    if any(trial.quality is not None and not trial.quality.complete for trial in new.trials):
        words.append("Some trials were asked only the first probes, for the old floors were lost; they stay unproven.")
    if after.trial is not None and after.trial.number not in held(new):
        words.append(f"Trial {after.trial.number} has not held when measured again after the search.")
    words.append("The search looked where the old SLOs and floors sent it; better configurations may be untried.")
    return words


def _number(found: Recommendation) -> int | None:
    return None if found.trial is None else found.trial.number


def _quality(name: str) -> bool:
    return name.startswith("quality:")


def as_dict(found: WhatIf) -> dict[str, Any]:
    """Everything but the results, for a script."""
    return {
        "changes": {key: {"before": old, "after": new} for key, (old, new) in found.changes.items()},
        "before": summary(found.before),
        "after": summary(found.after),
        "same": found.same,
        "old_recommendation_holds": found.holds,
        "old_recommendation_misses": dict(found.old_missed),
        "constraints": {
            b.name: {"missed_before": b.missed_before, "missed_after": b.missed_after, "measured": b.measured}
            for b in found.bindings
        },
        "unknown": list(found.unknown),
    }


def summary(found: Recommendation) -> dict[str, Any]:
    """What a script asks of a recommendation. closest_trial: what comes closest where none is recommended."""
    trial = found.trial or found.least_violating
    gains = {gain.name: gain for gain in found.gains}
    goodput, load = (gains.get(name) for name in ("goodput", "load"))
    interval = None if goodput is None else goodput.recommended_interval
    closest = max(trial.constraints.items(), key=lambda item: item[1], default=None) if trial is not None else None
    return {
        "trial": _number(found),
        "deployable": found.deployable,
        "verdict": found.verdict,
        "closest_trial": None if trial is None else trial.number,
        "goodput": None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high},
        "time_scale": None if load is None else load.recommended,
        "binding_constraint": None if closest is None else {"name": closest[0], "violation": closest[1]},
        "knobs": {} if trial is None else dict(trial.knobs),
    }
