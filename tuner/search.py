"""What to try next: the sampler, conditional parameters, no configuration twice unless meant, when to stop.

Proposals are a pure function of the seed and the finished trials, so that a resumed study goes on as an uninterrupted
one would have.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search_spaces.space import ChoiceParameter, IntParameter, Parameter, SearchSpace, key
from tuner.answers import QualityKey, by_key
from tuner.proposals import Arm, Proposed, Seen, arm_of, propose
from tuner.results import DIRECTIONS
from tuner.stopping import Stop, decided, plateau

MODELLED = 150
"""Trials up to which our own model proposes; beyond, where fitting it takes long, multivariate TPE does."""
RE_ASKS = 20
"""How often a proposal of TPE that was tried before is thrown away before a random one takes its place, and one that
does not fit before it is a trial."""
SEED_STRIDE = 10_007
RUNGS = "rungs"
"""Trial attribute: [time scale, worst SLO constraint] of each replay of its climb, in order."""
ARM = "arm"
"""Trial attribute: which arm proposed it (tuner.proposals.Arm); none of what a user or a resumption enqueued."""
HOPE = "hope"
"""Trial attribute: what the model expected of it, see tuner.proposals.Proposed."""
SEARCHED = (TrialState.COMPLETE, TrialState.PRUNED)
INTERRUPTED = "interrupted"
"""Value of the trial attribute "reason" of a trial whose runner died; its parameters are asked again."""
DRIFTED = "drifted"
"""Study attribute: numbers of the trials that a drift of the machine spoiled (tuner.sentinel); asked again."""
SECONDS = "measured_seconds"
"""Trial attribute of a trial that was told by a later runner than the one that measured it: what measuring took."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial to measure. knobs: active parameters only. replicate: a configuration that was tried before. refused:
    proposals before it that do not fit."""

    trial: optuna.Trial
    knobs: Mapping[str, Any]
    replicate: bool
    refused: int = 0


def open_sampler() -> optuna.samplers.BaseSampler:
    """The sampler of the stored study, which only ever plays enqueued parameters: see `ask`."""
    return RandomSampler(seed=0)


def directions() -> list[StudyDirection]:
    """Optuna's words for the objectives."""
    return [StudyDirection[direction.upper()] for direction in DIRECTIONS]


def ask(
    study: optuna.Study,
    space: SearchSpace,
    baseline: Mapping[str, Any],
    seed: int,
    startup_trials: int,
    fits: Callable[[Mapping[str, Any]], bool] = lambda knobs: True,
    quality_key: QualityKey | None = None,
) -> Proposal:
    """The next trial: an enqueued one if there is any, otherwise what an arm proposes from the finished trials.

    A proposal that does not fit counts as a crash to the model and costs no trial; after RE_ASKS of them the next one
    is a trial whatever it is.
    """
    refused: list[Mapping[str, Any]] = []
    trials = standing(study)
    tried = {key(space.active(t.params)) for t in trials if t.state.is_finished() and not _interrupted(t)}
    if not waiting(trials):
        arm = arm_of(sum(trial.state in SEARCHED for trial in trials), startup_trials)
        proposed = _propose(arm, trials, space, baseline, tried, seed, quality_key)
        while not fits(proposed.knobs) and len(refused) < RE_ASKS:
            refused.append(proposed.knobs)
            left_out = tried | {key(knobs) for knobs in refused}
            proposed = _propose(arm, trials, space, baseline, left_out, seed, quality_key, refused)
        attributes = {ARM: arm} if proposed.hope is None else {ARM: arm, HOPE: proposed.hope}
        study.enqueue_trial(proposed.knobs, user_attrs=attributes)
    trial = study.ask()
    knobs = suggest(trial, space)
    return Proposal(trial, knobs, replicate=key(knobs) in tried, refused=len(refused))


def standing(study: optuna.Study) -> list[FrozenTrial]:
    """Trials of the study but those that a drift spoiled."""
    drifted = study.user_attrs.get(DRIFTED, ())
    return [trial for trial in study.get_trials(deepcopy=False) if trial.number not in drifted]


def known_quality(
    trials: Collection[FrozenTrial], space: SearchSpace, knobs: Mapping[str, Any], quality_key: QualityKey
) -> float | None:
    """What a trial that answers as `knobs` do has told of their quality."""
    found = by_key(seen(trials, space), quality_key).get(quality_key(knobs))
    return found.quality if found is not None else None


def seen(trials: Collection[FrozenTrial], space: SearchSpace) -> list[Seen]:
    """What those that ended told."""
    return [_seen(trial, space) for trial in trials if trial.state in SEARCHED]


def waiting(trials: Collection[FrozenTrial]) -> bool:
    """Whether some trial is enqueued."""
    return any(trial.state == TrialState.WAITING for trial in trials)


def suggest(trial: optuna.Trial, space: SearchSpace) -> dict[str, Any]:
    """Values of the parameters that do something, each asked only after those it depends on."""
    values: dict[str, Any] = {}
    for name, parameter in space.parameters.items():
        if space.is_active(name, values):
            values[name] = _suggest(trial, name, parameter)
    return values


def distributions(space: SearchSpace, values: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Optuna's distributions of the parameters in `values`."""
    return {name: _distribution(space.parameters[name]) for name in values}


def searched(trials: Collection[FrozenTrial]) -> int:
    """Trials that used up budget: all that ended except the baseline and those whose runner died."""
    ended = [t for t in trials if t.state.is_finished() and t.number != 0]
    return sum(not _interrupted(t) for t in ended)


def stop(
    trials: Sequence[FrozenTrial],
    budget_trials: int,
    budget_seconds: float | None,
    knobs: int | None = None,
    drifted: Collection[int] = (),
) -> Stop | None:
    """Why the search should end, if it should: its budget, or, given the number of knobs, a plateau or a decision.

    Seconds are those spent in finished trials, so that a pause before a resume costs nothing. Optuna's duration of a
    trial whose runner died spans the pause: interrupted trials cost nothing, and one that was measured before and told
    after it costs its SECONDS. drifted: numbers of trials that cost seconds, and are no trials for the rest.
    """
    spent = [trial for trial in trials if trial.state.is_finished() and not _interrupted(trial)]
    ended = [trial for trial in spent if trial.number not in drifted]
    if searched(ended) >= budget_trials:
        return "trials"
    if budget_seconds is not None and sum(_seconds(trial) for trial in spent) >= budget_seconds:
        return "seconds"
    if knobs is None:
        return None
    hopes = [trial.user_attrs[HOPE] for trial in ended if HOPE in trial.user_attrs]
    if decided(hopes):
        return "decided"
    return "plateau" if plateau([_point(trial) for trial in ended if trial.state in SEARCHED], knobs) else None


def _point(trial: FrozenTrial) -> tuple[float, float] | None:
    """(goodput, quality) of a feasible trial."""
    if trial.state is not TrialState.COMPLETE or any(value > 0 for value in trial.constraints.values()):
        return None
    return trial.values[0], trial.values[1]


def _seconds(trial: FrozenTrial) -> float:
    measured: float | None = trial.user_attrs.get(SECONDS)
    if measured is not None:
        return measured
    return trial.duration.total_seconds() if trial.duration is not None else 0.0


def _interrupted(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("reason") == INTERRUPTED


def _propose(
    arm: Arm,
    trials: list[FrozenTrial],
    space: SearchSpace,
    baseline: Mapping[str, Any],
    tried: Collection[str],
    seed: int,
    quality_key: QualityKey | None,
    refused: Sequence[Mapping[str, Any]] = (),
) -> Proposed:
    """Knob values that were not tried, or after too many repeats some that were. refused: they cannot run."""
    # Interrupted trials were asked again: counting them would let a resumed study draw other numbers.
    own_seed = seed * SEED_STRIDE + sum(not _interrupted(trial) for trial in trials)
    finished = [trial for trial in trials if trial.state in SEARCHED]
    if arm != "model" or len(finished) <= MODELLED:
        told = [*seen(finished, space), *(Seen(knobs, None, 0.0, 0.0, None) for knobs in refused)]
        return propose(arm, space, baseline, told, tried, random.Random(own_seed), quality_key)
    shadow = optuna.create_study(directions=directions(), sampler=_tpe(own_seed))
    shadow.add_trials(finished)
    for _ in range(RE_ASKS):
        values = suggest(shadow.ask(), space)
        if key(values) not in tried:
            return Proposed(values)
    return propose("random", space, baseline, (), tried, random.Random(own_seed))


def _seen(trial: FrozenTrial, space: SearchSpace) -> Seen:
    """What a trial told. Quality 0 with every floor at 0 is quality that was not asked, see tuner.outcome.judge."""
    slo = max((v for name, v in trial.constraints.items() if name.startswith("slo:")), default=0.0)
    floors = [v for name, v in trial.constraints.items() if name.startswith("quality:")]
    knobs = space.active(trial.params)
    if trial.state is not TrialState.COMPLETE:
        return Seen(knobs, None, 0.0, slo, None)
    goodput, quality = trial.values[0], trial.values[1]
    floor = None if quality == 0.0 and not any(floors) else max(floors, default=0.0)
    return Seen(knobs, goodput, quality, slo, floor, [(s, v) for s, v in trial.user_attrs.get(RUNGS, ())])


def _tpe(seed: int) -> TPESampler:
    with warnings.catch_warnings():
        # multivariate and group are "experimental" in name only: they have been there since 2.x.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=seed, n_startup_trials=0, multivariate=True, group=True, constant_liar=False)


def _distribution(parameter: Parameter) -> BaseDistribution:
    if isinstance(parameter, ChoiceParameter):
        return CategoricalDistribution(parameter.choices)
    if isinstance(parameter, IntParameter):
        return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _suggest(trial: optuna.Trial, name: str, parameter: Parameter) -> Any:
    if isinstance(parameter, ChoiceParameter):
        return trial.suggest_categorical(name, parameter.choices)
    if isinstance(parameter, IntParameter):
        return trial.suggest_int(name, parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
