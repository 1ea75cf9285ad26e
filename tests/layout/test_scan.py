from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linmu.errors import InputError
from linmu.layout import SCHEDULES, invert, scan_order

grids = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7))
schedules = st.integers(0, SCHEDULES - 1)


def coordinates(order: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """[n, 3] of t, h, w in scan order, without numpy's unravel_index."""
    _, h, w = grid
    return np.array([(i // (h * w), i // w % h, i % w) for i in order.tolist()])


@given(grids, schedules, st.sampled_from(["rms", "raster"]))
def test_order_and_inverse_undo_each_other(grid, schedule, scan):
    order = scan_order(grid, schedule, scan)
    identity = np.arange(grid[0] * grid[1] * grid[2])
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), identity)
    np.testing.assert_array_equal(order[invert(order)], identity)
    np.testing.assert_array_equal(invert(order)[order], identity)


@given(grids, schedules)
def test_scan_neighbours_are_grid_neighbours(grid, schedule):
    steps = np.abs(np.diff(coordinates(scan_order(grid, schedule), grid), axis=0))
    assert np.all(steps.sum(1) == 1)


@given(grids, schedules)
def test_raster_is_the_identity(grid, schedule):
    np.testing.assert_array_equal(scan_order(grid, schedule, "raster"), np.arange(grid[0] * grid[1] * grid[2]))


@pytest.mark.parametrize(("schedule", "fast", "slow"), [(0, 2, 0), (1, 1, 0), (2, 0, 1), (3, 0, 2)])
def test_each_schedule_has_its_fastest_and_slowest_axis(schedule, fast, slow):
    grid = (3, 4, 5)
    visited = coordinates(scan_order(grid, schedule), grid)
    line = visited[: grid[fast]]
    np.testing.assert_array_equal(line[:, fast], np.arange(grid[fast]))
    assert np.ptp(np.delete(line, fast, axis=1), axis=0).max() == 0
    assert np.all(np.diff(visited[:, slow]) >= 0)


def test_an_image_is_scanned_by_rows_and_columns():
    rows, columns = scan_order((1, 2, 3), 0), scan_order((1, 2, 3), 1)
    assert rows.tolist() == [0, 1, 2, 5, 4, 3]
    assert columns.tolist() == [0, 3, 4, 1, 2, 5]
    np.testing.assert_array_equal(scan_order((1, 2, 3), 2), rows)
    np.testing.assert_array_equal(scan_order((1, 2, 3), 3), columns)


@pytest.mark.parametrize("arguments", [((0, 2, 2), 0, "rms"), ((1, 2, 2), 4, "rms"), ((1, 2, 2), 0, "zigzag")])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(InputError, match="no scan order"):
        scan_order(*arguments)
