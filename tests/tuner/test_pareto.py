"""Fronts, hypervolumes and knees; oracle: moocore."""

from __future__ import annotations

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.fakes import cases
from tuner.pareto import hypervolume, knee, non_dominated

# Few distinct values, so that ties and duplicates are common.
coordinates = st.integers(-8, 8).map(float) | st.floats(-8, 8, width=32).map(float)


def points(k: int) -> st.SearchStrategy[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    return st.integers(1, 12).flatmap(lambda n: arrays(np.float64, (n, k), elements=coordinates))


@given(st.integers(1, 4).flatmap(points))
def test_non_dominated_is_moocores(values: np.ndarray) -> None:
    directions = ["maximize", "minimize", "minimize", "maximize"][: values.shape[1]]
    expected = moocore.is_nondominated(values, maximise=[d == "maximize" for d in directions], keep_weakly=True)
    assert non_dominated(values, directions).tolist() == expected.tolist()


@given(st.sampled_from([2, 3]).flatmap(points))
def test_hypervolume_is_moocores(values: np.ndarray) -> None:
    reference = np.full(values.shape[1], 5.0)
    assert hypervolume(values, reference) == pytest.approx(moocore.hypervolume(values, ref=reference), abs=1e-9)


@given(points(3))
def test_hypervolume_with_directions_is_that_of_the_negated_objective(values: np.ndarray) -> None:
    turned = values * np.array([-1.0, 1.0, -1.0])
    found = hypervolume(turned, [-9.0, 9.0, -9.0], ["maximize", "minimize", "maximize"])
    assert found == pytest.approx(hypervolume(values, [9.0, 9.0, 9.0]))


@given(points(3))
def test_a_further_point_never_shrinks_the_hypervolume(values: np.ndarray) -> None:
    reference = [5.0, 5.0, 5.0]
    assert hypervolume(values, reference) >= hypervolume(values[:-1], reference) - 1e-9


def test_no_points_dominate_nothing() -> None:
    assert hypervolume(np.empty((0, 3)), [1.0, 1.0, 1.0]) == 0.0
    assert non_dominated(np.empty((0, 3)), ["maximize"] * 3).tolist() == []


@pytest.mark.parametrize(
    "values, directions, expected",
    cases(
        [
            ("one point", [[3.0, 4.0]], ["maximize", "maximize"], 0),
            ("the elbow of three", [[0.0, 10.0], [1.0, 1.0], [10.0, 0.0]], ["minimize", "minimize"], 1),
            ("scale does not matter", [[0, 1e6], [4, 9e5], [5, 5e5], [10, 0]], ["maximize", "maximize"], 1),
            ("a bulge away from the ideal is no knee", [[0.0, 1.0], [0.9, 0.9], [1.0, 0.0]], ["minimize"] * 2, 0),
            ("third objective is not looked at", [[0, 9, 0], [2, 2, 9], [9, 0, 0]], ["minimize"] * 3, 1),
            ("all the same", [[2.0, 2.0], [2.0, 2.0]], ["minimize", "maximize"], 0),
            ("a straight front", [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], ["minimize", "minimize"], 0),
        ]
    ),
)
def test_knee(values: list[list[float]], directions: list[str], expected: int) -> None:
    assert knee(values, directions) == expected
