"""Non-dominated set, hypervolume and knee: arrays in, arrays out.

values: (n, k) finite floats, one point a row. directions: k of "maximize" or "minimize".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def non_dominated(values: npt.ArrayLike, directions: Sequence[str]) -> BoolArray:
    """Mask (n,) of the points that no other point beats: no worse anywhere, better somewhere. Duplicates all stay."""
    costs = _as_costs(values, directions)
    no_worse = (costs[:, None, :] <= costs[None, :, :]).all(axis=2)
    better = (costs[:, None, :] < costs[None, :, :]).any(axis=2)
    return np.asarray(~(no_worse & better).any(axis=0), dtype=np.bool_)


def hypervolume(points: npt.ArrayLike, reference: npt.ArrayLike, directions: Sequence[str] | None = None) -> float:
    """Volume dominated by the points and bounded by `reference` (k,), for two or three objectives; exact.

    directions: minimize for all when None. Points that are not better than the reference everywhere add nothing.
    Two objectives: one sweep. Three: the two-dimensional sweep in each slab between consecutive third coordinates
    (Zitzler's hypervolume by slicing objectives).
    """
    worst = np.asarray(reference, dtype=np.float64)
    assert worst.shape in ((2,), (3,)), f"reference of shape {worst.shape}"
    named = directions if directions is not None else ["minimize"] * len(worst)
    corner = _as_costs(worst[None, :], named)[0]
    costs = _as_costs(np.asarray(points, dtype=np.float64).reshape(-1, len(worst)), named)
    costs = costs[(costs < corner).all(axis=1)]
    if len(worst) == 2:
        return _area(costs, corner)
    costs = costs[np.argsort(costs[:, 2], kind="stable")]
    heights = np.diff(np.append(costs[:, 2], corner[2]))
    slabs = [_area(costs[: i + 1, :2], corner[:2]) * height for i, height in enumerate(heights) if height > 0]
    return float(sum(slabs))


def knee(values: npt.ArrayLike, directions: Sequence[str]) -> int:
    """Index of the point furthest from the chord between the two extremes of the front, in its first two objectives.

    Both objectives are scaled to [0, 1] over the points; distance counts towards the ideal corner only. The first
    point wins ties, and the only one when there is but one. Source: Das, Structural Optimization 18 (1999).
    """
    costs = _as_costs(values, directions)[:, :2]
    assert len(costs), "the knee of no points"
    span = np.ptp(costs, axis=0)
    scaled = (costs - costs.min(axis=0)) / np.where(span > 0, span, 1.0)
    first = scaled[np.lexsort((scaled[:, 1], scaled[:, 0]))[0]]
    last = scaled[np.lexsort((scaled[:, 0], scaled[:, 1]))[0]]
    chord = last - first
    to_ideal = (scaled[:, 0] - first[0]) * chord[1] - (scaled[:, 1] - first[1]) * chord[0]
    return int(np.argmax(to_ideal))


def _area(costs: FloatArray, corner: FloatArray) -> float:
    """Two-dimensional hypervolume by one sweep along the first cost."""
    total, lowest = 0.0, float(corner[1])
    for x, y in costs[np.lexsort((costs[:, 1], costs[:, 0]))]:
        if y < lowest:
            total += float(corner[0] - x) * (lowest - float(y))
            lowest = float(y)
    return total


def _as_costs(values: npt.ArrayLike, directions: Sequence[str]) -> FloatArray:
    """The values with every objective turned into one to minimize."""
    array = np.asarray(values, dtype=np.float64).reshape(-1, len(directions))
    assert np.isfinite(array).all(), "objectives must be finite"
    assert set(directions) <= {"maximize", "minimize"}, f"directions {directions}"
    return array * np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
