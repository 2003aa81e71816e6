"""What the page's script knows of each trial: to select two, put them side by side and copy their configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from reports import pareto_front
from reports.pareto_front import SEARCHED
from reports.scenarios import NAMES
from reports.style import BASELINE, RECOMMENDED, rounded
from reports.text import NONE, interval, knob_value, percent, percent_interval, plain, quality, seconds
from tuner.recommend import Recommendation
from tuner.results import StudyResults, TrialResult
from tuner.scoring.metrics import Interval
from tuner.worth import AGAIN, claim, replays_of

CLAIMED = "claimed"
"""What holds after the search (tuner.worth.claim), beside what the search saw."""


def info(results: StudyResults, recommendation: Recommendation, tail_name: str) -> dict[str, Any]:
    """study: its name. selected: baseline, and what is recommended or else came closest. settings: YAML of what all
    configurations share. cards, one a trial: trial (number), role, state, at (objectives by name), figures and knobs
    (name and text, in order), yaml (of its knobs)."""
    chosen = recommendation.trial or recommendation.least_violating
    recommended = None if recommendation.trial is None else recommendation.trial.number
    at = {row.trial: row.at for row in pareto_front.info(results, recommended)}
    both = (results.baseline.number, results.baseline.number if chosen is None else chosen.number)
    return {
        "study": results.spec.name,
        "selected": list(dict.fromkeys(both)),
        "settings": _settings(results),
        "cards": [_card(trial, results, recommended, tail_name, at.get(trial.number, {})) for trial in results.trials],
    }


def _card(
    trial: TrialResult, results: StudyResults, recommended: int | None, tail_name: str, at: Mapping[str, float]
) -> dict[str, Any]:
    role = BASELINE if trial is results.baseline else ""
    return {
        "trial": trial.number,
        "role": RECOMMENDED if trial.number == recommended else role,
        "state": trial.state + (", on the front" if trial.on_front else ""),
        "at": dict(zip(at, rounded(at.values()), strict=True)),
        "figures": [*_claimed(trial, results, tail_name), *_searched(trial, tail_name)],
        "knobs": [(name, knob_value(name, value)) for name, value in trial.knobs.items()],
        "yaml": _dumped(trial.knobs),
    }


def _claimed(trial: TrialResult, results: StudyResults, tail_name: str) -> Iterator[tuple[str, str]]:
    if trial.traffic is None:
        return
    if (found := claim(results, trial.number)) is None:
        again = any(replays_of(results, trial.number, purpose) for purpose in AGAIN)
        yield f"goodput {CLAIMED}", "none by the replays after the search" if again else "not measured again"
        yield f"{tail_name}, {CLAIMED}", NONE
        return
    load = f"{plain(found.time_scale)}x, {NAMES[found.purpose]}"
    yield f"goodput {CLAIMED}", f"{interval(found.goodput)} requests/s at {load}"
    yield f"{tail_name}, {CLAIMED}", f"{seconds(found.tail_latency)} at {plain(found.replayed_scale)}x"


def _searched(trial: TrialResult, tail_name: str) -> Iterator[tuple[str, str]]:
    load = "" if trial.time_scale is None else f" at {plain(trial.time_scale)}x"
    if trial.traffic is not None:
        above = "" if trial.missed_scale is None else f"; misses at {plain(trial.missed_scale)}x"
        yield f"goodput {SEARCHED}", f"{interval(trial.traffic.goodput)} requests/s{load}{above}"
    if trial.objectives is not None:
        yield f"{tail_name}, {SEARCHED}", f"{seconds(trial.objectives[2])}{load}"
    for name, one in trial.traffic.classes.items() if trial.traffic is not None else ():
        yield f"SLO attainment, {name}, {SEARCHED}", f"{percent_interval(one.attainment)} of {percent(one.target)}"
    if trial.constraints:
        missed = [name for name, value in trial.constraints.items() if value > 0]
        yield f"missed {SEARCHED}", ", ".join(missed) or "nothing"
    if trial.quality is not None:
        yield "quality (1 = reference)", quality(Interval(trial.quality.value, trial.quality.low, trial.quality.high))
    if trial.reason:
        yield "ended", ": ".join(part for part in (trial.reason, trial.detail) if part)


def configuration(trial: TrialResult, results: StudyResults) -> str:
    """The trial's configuration as YAML that `python -m engine --config` takes, under a comment that says where it is
    from; what it leaves out is the engine's default. The page's script makes the same of a card."""
    return f"# study {results.spec.name}, trial {trial.number}\n{_settings(results)}{_dumped(trial.knobs)}"


def _settings(results: StudyResults) -> str:
    spec = results.spec
    models = {"model": str(spec.model)} | ({} if spec.draft_model is None else {"draft_model": str(spec.draft_model)})
    return _dumped({**models, **spec.engine.settings})


def _dumped(values: Mapping[str, Any]) -> str:
    dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(dict(values), Dumper=dumper, sort_keys=False)) if values else ""
