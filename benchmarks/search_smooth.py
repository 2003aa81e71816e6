"""The capacities of a measured table without the slow moments of the machine that measured it.

One reading a rung, one in ten of them off: the best of 648 such cells is a lucky one, which no search could learn and
no deployment would show. ln capacity is therefore fitted by main effects and pairs of knobs (functional ANOVA of order
two, dummy-coded, no order of values assumed), by iterated least squares with Huber's weights (Huber, 1964). Replays
follow from the fit: held below the capacity and missed above, the worst constraint growing by the table's slope.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.search_table import CAP, Replay, Table
from search_spaces.space import key
from tuner.scoring.slo import BADNESS_CAP

ITERATIONS, HUBER = 10, 1.345
FloatArray = npt.NDArray[np.float64]


def smoothed(table: Table) -> Table:
    """The same table with fitted capacities; failures and qualities stay as they are."""
    fitted = dict(zip(table.measured, fitted_capacities(table).tolist(), strict=True))
    share = statistics.median(
        found.goodput / table.ladder[rung]
        for rungs in table.measured.values()
        for rung, found in rungs.items()
        if found.worst <= 0
    )
    measured = {
        name: {rung: _replay(table, name, rung, capacity, share) for rung in range(len(table.ladder))}
        for name, capacity in fitted.items()
    }
    return replace(table, measured=measured)


def fitted_capacities(table: Table) -> FloatArray:
    """ln time scale of every measured configuration, in the order of `measured`."""
    values = np.array([table.ln_capacities[name] for name in table.measured])
    configurations = [one for one in table.configurations if key(one) in table.measured]
    design = np.array([_row(table, one) for one in configurations])
    weights = np.ones(len(values))
    fit = values
    for _ in range(ITERATIONS):
        root = np.sqrt(weights)
        fit = design @ np.linalg.lstsq(design * root[:, None], values * root, rcond=None)[0]
        away = np.abs(values - fit)
        weights = np.minimum(1.0, HUBER * 1.4826 * float(np.median(away)) / np.maximum(away, 1e-12))
    return fit


def _row(table: Table, knobs: Mapping[str, Any]) -> list[float]:
    """1, then an indicator of every value but the first of each knob, then of every pair of those."""
    single = [[float(knobs[name] == value) for value in values[1:]] for name, values in table.choices.items()]
    pairs = (a * b for left, right in itertools.combinations(single, 2) for a in left for b in right)
    return [1.0, *itertools.chain(*single), *pairs]


def _replay(table: Table, name: str, rung: int, capacity: float, share: float) -> Replay:
    measured_at = min(table.measured[name], key=lambda at: (abs(at - rung), at))
    near = table.measured[name][measured_at]
    worst = max(min(table.slope * (math.log(table.ladder[rung]) - capacity), CAP), -BADNESS_CAP)
    constraints = {slo: worst + value - near.worst for slo, value in near.constraints.items()}
    goodput = share * table.ladder[rung] * (1.0 if worst <= 0 else max(1.0 - worst, 0.1))
    return Replay(goodput, constraints, near.tail, near.seconds * table.ladder[measured_at] / table.ladder[rung])
