"""Profile: a machine and a model as the simulator knows them, fitted to logged steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from engine.step_log import Setting, TimedStep
from engine.step_model import StepModel, fit

MIN_STEPS = 30
"""Steps of a precision without which it is not modelled."""
PRIOR, PRIOR_WEIGHT = 0.5, 1.0
"""Acceptance before anything is known, and how many observations that counts for, as in speculative.controller."""
CLIENT_SECONDS = 0.001
"""From the client to the queue, and from a step's end to the client: parsing, the chat template, detokenising, JSON.
Measured on the bundled engine: 0.9 to 2 ms both ways together."""


class Profile(msgspec.Struct, frozen=True):
    """compute_dtype: what dtype auto is. models: by step_model.precision.

    acceptance: probability that guess 1, 2, … stands, given that those before it did. ingress, egress: seconds from the
    client to the queue, and from the end of a step to the client.
    """

    compute_dtype: str
    models: dict[str, StepModel]
    acceptance: tuple[float, ...] = ()
    ingress: float = CLIENT_SECONDS
    egress: float = CLIENT_SECONDS

    def slower(self, factor: float) -> Profile:
        """Every step takes `factor` times as long: a machine that others use too."""
        models = {
            name: msgspec.structs.replace(model, coefficients=tuple(factor * c for c in model.coefficients))
            for name, model in self.models.items()
        }
        return msgspec.structs.replace(self, models=models)


def profile_of(records: Iterable[Setting | TimedStep]) -> Profile:
    """Raises ValueError where no precision has MIN_STEPS timed steps."""
    steps: defaultdict[str, list[TimedStep]] = defaultdict(list)
    setting: Setting | None = None
    for record in records:
        if isinstance(record, Setting):
            setting = record
        else:
            assert setting is not None, "a log begins with its setting"
            steps[setting.precision].append(record)
    known = {name: timed for name, timed in steps.items() if len(timed) >= MIN_STEPS}
    if setting is None or not known:
        raise ValueError(f"profile: expected at least {MIN_STEPS} timed steps of a precision")
    models: dict[str, StepModel] = {}
    for weights in {name.rpartition("/")[0] for name in known}:
        alike = {name: timed for name, timed in known.items() if name.rpartition("/")[0] == weights}
        models |= fit({name: [(step.counts, step.seconds) for step in timed] for name, timed in alike.items()})
    guesses = [pair for timed in steps.values() for step in timed for pair in step.guesses]
    return Profile(setting.compute_dtype, models, acceptance(guesses))


def acceptance(guesses: Iterable[tuple[int, int]]) -> tuple[float, ...]:
    """By position; guesses: how many a sequence had in a step, and how many stood."""
    offered: defaultdict[int, int] = defaultdict(int)
    stood: defaultdict[int, int] = defaultdict(int)
    for guessed, kept in guesses:
        for position in range(min(kept + 1, guessed)):
            offered[position] += 1
            stood[position] += position < kept
    rates, rate = [], PRIOR
    for position in range(len(offered)):
        rate = (stood[position] + PRIOR_WEIGHT * rate) / (offered[position] + PRIOR_WEIGHT)
        rates.append(rate)
    return tuple(rates)
