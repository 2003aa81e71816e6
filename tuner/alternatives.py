"""Other configurations that a team may prefer to the recommended one: each the best of the study in one respect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tuner.pareto import knee, non_dominated
from tuner.results import StudyResults, TrialResult
from tuner.scored import config_of
from tuner.serving.adapters import Memory, memory
from tuner.worth import ORIGINS, Proven

Label = Literal["knee", "best quality", "lowest latency", "lowest memory"]
WORDS: Mapping[Label, str] = {
    "knee": "furthest from the line between the most goodput and the best quality",
    "best quality": "quality nearest to the reference's",
    "lowest latency": "least tail latency, at the load that it holds",
    "lowest memory": "fewest bytes of weights and KV pool; of equals, of KV for one sequence of full length",
}
QUALITY_DIGITS = 4
"""Quality is compared as it is shown."""
FEWEST_OF_A_KNEE = 3
"""A front of two points has ends, and nothing between them."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A configuration and what it is the best in; worth: what it serves. memory: None where the checkpoint cannot be
    read any more. tested: it met every constraint when it was measured again after the search."""

    trial: TrialResult
    labels: tuple[Label, ...]
    worth: Proven
    memory: Memory | None
    tested: bool

    @property
    def origin(self) -> str:
        """Where its figures come from."""
        return ORIGINS[self.worth.purpose]


def alternatives(
    results: StudyResults,
    chosen: TrialResult,
    pool: Sequence[TrialResult],
    worth: Mapping[int, Proven],
    standing: Collection[int],
) -> tuple[Alternative, ...]:
    """The recommended one first, then each other trial of `pool` that is the best in something.

    pool: the feasible trials that missed nothing when measured again. standing: those that were measured again. Of
    equals the recommended one is taken, then the one that serves more. The order of the trials changes nothing.
    """
    shown = {trial.number: trial for trial in (chosen, *sorted(pool, key=lambda trial: trial.number))}
    sizes = {number: _memory(results, trial) for number, trial in shown.items()}
    found = _labelled(chosen, pool, worth, sizes)
    labels = {
        number: tuple(label for label in WORDS if label in found and found[label].number == number) for number in shown
    }
    return tuple(
        Alternative(trial, labels[number], worth[number], sizes[number], number in standing)
        for number, trial in shown.items()
        if labels[number] or trial is chosen
    )


def as_dict(one: Alternative) -> dict[str, Any]:
    """For a script: seconds, bytes, requests/s."""
    return {
        "trial": one.trial.number,
        "labels": list(one.labels),
        "goodput": asdict(one.worth.goodput),
        "time_scale": one.worth.time_scale,
        "quality": _objectives(one.trial)[1],
        "tail_latency": one.worth.tail_latency,
        "memory": None if one.memory is None else asdict(one.memory) | {"total": one.memory.total},
        "tested": one.tested,
        "origin": one.origin,
        "knobs": dict(one.trial.knobs),
    }


def _labelled(
    chosen: TrialResult,
    pool: Sequence[TrialResult],
    worth: Mapping[int, Proven],
    sizes: Mapping[int, Memory | None],
) -> dict[Label, TrialResult]:
    if not pool:
        return {}

    def best(cost: Callable[[TrialResult], tuple[float, ...]], among: Sequence[TrialResult] = pool) -> TrialResult:
        return min(among, key=lambda t: (cost(t), t.number != chosen.number, -worth[t.number].goodput.low, t.number))

    found: dict[Label, TrialResult] = {
        "best quality": best(lambda trial: (-_shown_quality(trial),)),
        "lowest latency": best(lambda trial: (worth[trial.number].tail_latency,)),
    }
    if (bent := _knee(pool, worth)) is not None:
        found["knee"] = bent
    known = {number: size for number, size in sizes.items() if size is not None}
    if among := [trial for trial in pool if trial.number in known]:
        found["lowest memory"] = best(lambda t: (known[t.number].total, known[t.number].sequence), among)
    return found


def _knee(pool: Sequence[TrialResult], worth: Mapping[int, Proven]) -> TrialResult | None:
    """Of the front of goodput and quality, by Das (see pareto.knee); None where nothing lies between its ends."""
    ordered = sorted(pool, key=lambda trial: trial.number)
    values = np.array([(worth[t.number].goodput.value, _shown_quality(t)) for t in ordered])
    directions = ("maximize", "maximize")
    front = np.flatnonzero(non_dominated(values, directions))
    if len(np.unique(values[front], axis=0)) < FEWEST_OF_A_KNEE:
        return None
    return ordered[int(front[knee(values[front], directions)])]


def _memory(results: StudyResults, trial: TrialResult) -> Memory | None:
    try:
        return memory(config_of(results.spec, trial.knobs), gpu=bool(results.environment.get("gpus")))
    except ValueError:  # a checkpoint that is gone, or of another engine
        return None


def _shown_quality(trial: TrialResult) -> float:
    return round(_objectives(trial)[1], QUALITY_DIGITS)


def _objectives(trial: TrialResult) -> tuple[float, float, float]:
    assert trial.objectives is not None, f"trial {trial.number} is feasible without figures"
    return trial.objectives
