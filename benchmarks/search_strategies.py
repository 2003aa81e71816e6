"""The contenders of benchmarks/search.py: each proposes configurations and is told what became of them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from benchmarks.search_table import CAP, Knobs, Table
from search_spaces.space import key, load_space
from tuner import search

RE_ASKS, RE_ASKS_GP = 30, 2
"""Asks for one trial, while they repeat what was tried. GPSampler maximises what it knows, which a repeat does not
change: asked 30 times it says the same 30 times, each after half a second."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a climb told of one configuration. goodput, tail: at the highest rung held, or at the one missed.

    rungs: (time scale, worst SLO constraint) of every replay. constraints: empty for a crash. held: a rung, or -1.
    seconds: of the engine.
    """

    knobs: Knobs
    goodput: float
    quality: float
    tail: float
    constraints: Mapping[str, float]
    rungs: Sequence[tuple[float, float]]
    held: int
    seconds: float

    @property
    def worst_slo(self) -> float:
        return max(value for name, value in self.constraints.items() if name.startswith("slo:"))

    @property
    def feasible(self) -> bool:
        return bool(self.constraints) and max(self.constraints.values()) <= 0


class Strategy(Protocol):
    """ask: knobs of the next trial. tell: what became of it; the baseline is told first, unasked."""

    def ask(self) -> Knobs: ...

    def tell(self, outcome: Outcome) -> None: ...


class Library:
    """A sampler of Optuna. Goodput and quality are its objectives (GPSampler's: goodput, as several take it minutes a
    study), the worst SLO and the worst floor its constraints. A repeat is told as FAIL, which no sampler sees, and
    asked anew. A crash is told as PRUNED with its constraints, from which TPE learns and the others do not."""

    def __init__(self, table: Table, sampler: BaseSampler, seed: int) -> None:
        self._table, self._rng = table, random.Random(seed)
        self._objectives, self._asks = (1, RE_ASKS_GP) if isinstance(sampler, GPSampler) else (2, RE_ASKS)
        self._study = optuna.create_study(directions=["maximize"] * self._objectives, sampler=sampler)
        self._trial: optuna.Trial | None = None
        self._tried: set[str] = set()

    def ask(self) -> Knobs:
        for _ in range(self._asks):
            self._trial = self._study.ask()
            knobs = {name: _suggest(self._trial, name, values) for name, values in self._table.choices.items()}
            if key(knobs) not in self._tried:
                return knobs
            self._study.tell(self._trial, state=TrialState.FAIL)
        self._trial = None
        return self._rng.choice([one for one in self._table.configurations if key(one) not in self._tried])

    def tell(self, outcome: Outcome) -> None:
        self._tried.add(key(outcome.knobs))
        slo = max((v for name, v in outcome.constraints.items() if name.startswith("slo:")), default=CAP)
        floor = max((v for name, v in outcome.constraints.items() if name.startswith("quality:")), default=CAP)
        state = TrialState.COMPLETE if outcome.constraints else TrialState.PRUNED
        values = (outcome.goodput, outcome.quality)[: self._objectives] if outcome.constraints else None
        constraints = {"a_slo": slo, "b_quality": floor}
        if self._trial is None:
            distributions = {name: _distribution(values) for name, values in self._table.choices.items()}
            params = {name: _internal(self._table.choices[name], value) for name, value in outcome.knobs.items()}
            self._study.add_trial(
                optuna.create_trial(
                    state=state, values=values, params=params, distributions=distributions, constraints=constraints
                )
            )
            return
        for name, value in constraints.items():
            self._trial.set_constraint(name, value)
        self._study.tell(self._trial, values, state)
        self._trial = None


class Listed:
    """Every configuration in an order that was settled before the first trial."""

    def __init__(self, order: Sequence[Knobs]) -> None:
        self._left = list(order)

    def ask(self) -> Knobs:
        return self._left[0]

    def tell(self, outcome: Outcome) -> None:
        self._left = [one for one in self._left if key(one) != key(outcome.knobs)]


def grid(table: Table) -> Listed:
    """The last knob fastest."""
    places = {name: values.index for name, values in table.choices.items()}
    return Listed(sorted(table.configurations, key=lambda one: [place(one[name]) for name, place in places.items()]))


def oracle(table: Table) -> Listed:
    """Who knows the truth, and pays for the baseline and the climb all the same: what no search can do without."""
    return Listed(sorted(table.configurations, key=lambda one: -table.goodputs[key(one)]))


class Ours:
    """tuner.search as a study uses it."""

    def __init__(self, table: Table, seed: int, startup_trials: int) -> None:
        self._table, self._seed, self._startup = table, seed, startup_trials
        parameters = {name: {"type": "choice", "choices": list(v)} for name, v in table.choices.items()}
        self._space = load_space({"parameters": parameters})
        self._study = optuna.create_study(directions=search.directions(), sampler=search.open_sampler())
        self._trial: optuna.Trial | None = None

    def ask(self) -> Knobs:
        proposal = search.ask(
            self._study, self._space, self._table.baseline, self._seed, self._startup,
            quality_key=self._table.quality_key,
        )  # fmt: skip
        self._trial = proposal.trial
        return proposal.knobs

    def tell(self, outcome: Outcome) -> None:
        names = [*self._table.slo_names, *self._table.floor_names]
        constraints = {name: outcome.constraints.get(name, CAP) for name in sorted(names)}
        values = (outcome.goodput, outcome.quality, outcome.tail)
        state = TrialState.COMPLETE if outcome.constraints else TrialState.PRUNED
        attributes = {search.RUNGS: [list(pair) for pair in outcome.rungs]}
        if self._trial is None:
            self._study.add_trial(
                optuna.create_trial(
                    state=state,
                    values=values if outcome.constraints else None,
                    params=dict(outcome.knobs),
                    distributions=search.distributions(self._space, outcome.knobs),
                    constraints=constraints,
                    user_attrs=attributes,
                )
            )
            return
        for name, value in attributes.items():
            self._trial.set_user_attr(name, value)
        for name, value in constraints.items():
            self._trial.set_constraint(name, value)
        self._study.tell(self._trial, values if outcome.constraints else None, state)


STARTUP = 10
"""Trials before Optuna's own samplers model anything: their default."""


def contenders(ours_startup: int) -> dict[str, Callable[[Table, int], Strategy]]:
    """Name -> a fresh strategy for a table and a seed."""
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)

    def library(make: Callable[[int], BaseSampler]) -> Callable[[Table, int], Strategy]:
        return lambda table, seed: Library(table, make(seed), seed)

    return {
        "random": library(lambda seed: RandomSampler(seed=seed)),
        "grid order": lambda table, seed: grid(table),
        "Sobol": library(lambda seed: QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)),
        "NSGA-II": library(lambda seed: NSGAIISampler(seed=seed, population_size=20)),
        "TPE": library(lambda seed: TPESampler(seed=seed, n_startup_trials=STARTUP)),
        "TPE multivariate": library(
            lambda seed: TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True)
        ),
        "GPSampler": library(
            lambda seed: GPSampler(seed=seed, n_startup_trials=STARTUP, deterministic_objective=False)
        ),
        "ours": lambda table, seed: Ours(table, seed, ours_startup),
        "oracle": lambda table, seed: oracle(table),
    }


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """Numbers by their rank, so that a sampler may know their order."""
    return IntDistribution(0, len(values) - 1) if _numeric(values) else CategoricalDistribution(values)


def _internal(values: Sequence[Any], value: Any) -> Any:
    return values.index(value) if _numeric(values) else value


def _suggest(trial: optuna.Trial, name: str, values: Sequence[Any]) -> Any:
    if _numeric(values):
        return values[trial.suggest_int(name, 0, len(values) - 1)]
    return trial.suggest_categorical(name, values)
