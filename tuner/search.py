"""What to try next: the sampler, conditional parameters, no configuration twice unless meant, when to stop.

Proposals are a pure function of the seed and the finished trials, so that a resumed study goes on as an uninterrupted
one would have.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Collection, Mapping
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

from search_spaces.space import ChoiceParameter, IntParameter, Parameter, SearchSpace
from tuner.results import DIRECTIONS

RE_ASKS = 20
"""How often a proposal that was tried before is thrown away, and then as often a random one, before the configuration
is measured again, as a replicate."""
SEED_STRIDE = 10_007
NEAR_KNOBS = 2
SEARCHED = (TrialState.COMPLETE, TrialState.PRUNED)
INTERRUPTED = "interrupted"
"""Value of the trial attribute "reason" of a trial whose runner died; its parameters are asked again."""
SECONDS = "measured_seconds"
"""Trial attribute of a trial that was told by a later runner than the one that measured it: what measuring took."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial to measure. knobs: active parameters only. replicate: a configuration that was tried before."""

    trial: optuna.Trial
    knobs: Mapping[str, Any]
    replicate: bool


def open_sampler() -> optuna.samplers.BaseSampler:
    """The sampler of the stored study, which only ever plays enqueued parameters: see `ask`."""
    return RandomSampler(seed=0)


def directions() -> list[StudyDirection]:
    """Optuna's words for the objectives."""
    return [StudyDirection[direction.upper()] for direction in DIRECTIONS]


def ask(
    study: optuna.Study, space: SearchSpace, baseline: Mapping[str, Any], seed: int, startup_trials: int
) -> Proposal:
    """The next trial: an enqueued one if there is any, otherwise what TPE proposes from the finished trials.

    Of the startup trials every other one is near the baseline, see `_near`. Proposals are drawn from a copy in memory,
    so that those thrown away as repeats leave no trace in the study.
    """
    trials = study.get_trials(deepcopy=False)
    tried = {key(space.active(t.params)) for t in trials if t.state.is_finished() and not _interrupted(t)}
    if not any(trial.state == TrialState.WAITING for trial in trials):
        study.enqueue_trial(_propose(trials, space, baseline, tried, seed, startup_trials))
    trial = study.ask()
    knobs = suggest(trial, space)
    return Proposal(trial, knobs, replicate=key(knobs) in tried)


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


def key(knobs: Mapping[str, Any]) -> str:
    """Equal for equal knob values, whatever their order."""
    return json.dumps(knobs, sort_keys=True)


def searched(trials: Collection[FrozenTrial]) -> int:
    """Trials that used up budget: all that ended except the baseline and those whose runner died."""
    ended = [t for t in trials if t.state.is_finished() and t.number != 0]
    return sum(not _interrupted(t) for t in ended)


def exhausted(trials: Collection[FrozenTrial], budget_trials: int, budget_seconds: float | None) -> bool:
    """The stop rule. Seconds are those spent in finished trials, so that a pause before a resume costs nothing.

    Optuna's duration of a trial whose runner died spans the pause: interrupted trials cost nothing, and one that was
    measured before and told after it costs its SECONDS.
    """
    spent = sum(_seconds(trial) for trial in trials if not _interrupted(trial))
    return searched(trials) >= budget_trials or (budget_seconds is not None and spent >= budget_seconds)


def _seconds(trial: FrozenTrial) -> float:
    measured: float | None = trial.user_attrs.get(SECONDS)
    if measured is not None:
        return measured
    return trial.duration.total_seconds() if trial.duration is not None else 0.0


def _interrupted(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("reason") == INTERRUPTED


def _propose(
    trials: list[FrozenTrial],
    space: SearchSpace,
    baseline: Mapping[str, Any],
    tried: Collection[str],
    seed: int,
    startup_trials: int,
) -> dict[str, Any]:
    """Knob values that were not tried, or after too many repeats some that were."""
    finished = [trial for trial in trials if trial.state in SEARCHED]
    # Interrupted trials were asked again: counting them would let a resumed study draw other numbers.
    own_seed = seed * SEED_STRIDE + sum(not _interrupted(trial) for trial in trials)
    near = len(finished) < startup_trials and len(finished) % 2 == 1
    rng = random.Random(own_seed)
    shadow = optuna.create_study(directions=directions(), sampler=_tpe(own_seed, startup_trials))
    shadow.add_trials(finished)
    for asked in range(2 * RE_ASKS):
        if asked == RE_ASKS:
            shadow.sampler = RandomSampler(seed=own_seed)
        values = suggest(shadow.ask(), space)
        if near and asked < RE_ASKS:
            values = _near(space, baseline, values, rng)
        if key(values) not in tried:
            break
    return values


def _near(
    space: SearchSpace, baseline: Mapping[str, Any], drawn: Mapping[str, Any], rng: random.Random
) -> dict[str, Any]:
    """The baseline with NEAR_KNOBS of its knobs as drawn, and what those make active.

    Past the knee a random configuration is mostly hopeless in some knob; near a sane one the effect of each shows.
    """
    changed = set(rng.sample(list(baseline), min(NEAR_KNOBS, len(baseline))))
    values = {**drawn, **{name: value for name, value in baseline.items() if name not in changed}}
    for name, parameter in space.parameters.items():
        values.setdefault(name, _any_value(parameter))
    return space.active(values)


def _any_value(parameter: Parameter) -> Any:
    return parameter.choices[0] if isinstance(parameter, ChoiceParameter) else parameter.low


def _tpe(seed: int, startup_trials: int) -> TPESampler:
    with warnings.catch_warnings():
        # multivariate and group are "experimental" in name only: they have been there since 2.x.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(
            seed=seed, n_startup_trials=startup_trials, multivariate=True, group=True, constant_liar=False
        )


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
