from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.calibration.statistics import InputStatistics, priorities


def spread_rows(seed: int, rows: int, channels: int = 5) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, channels))
    return (x * 10.0 ** np.linspace(-3, 2, channels)).astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_statistics_do_not_depend_on_how_rows_arrive(cuts: list[int], seed: int) -> None:
    x = spread_rows(seed, sum(cuts) + 1)
    whole, parts = InputStatistics(5, sample_rows=7), InputStatistics(5, sample_rows=7)
    whole.add(x)
    for piece in np.split(x, np.cumsum(cuts)):
        parts.add(piece)
    assert parts.count == whole.count == len(x)
    for name, value in whole.values.items():
        np.testing.assert_allclose(parts.values[name], value, rtol=1e-12, err_msg=name)


def test_values_are_numpys_own() -> None:
    x = spread_rows(1, 300)
    seen = InputStatistics(5)
    seen.add(x)
    np.testing.assert_array_equal(seen.amax, np.abs(x).max(0))
    np.testing.assert_array_equal(seen.values["min"], x.min(0))
    np.testing.assert_array_equal(seen.values["max"], x.max(0))


def test_the_sample_is_uniform_and_of_whole_rows() -> None:
    seen = InputStatistics(1, sample_rows=64)
    for start in range(0, 6400, 80):
        seen.add(np.arange(start, start + 80, dtype=np.float32)[:, None])
    rows = seen.values["rows"][:, 0]
    assert len(np.unique(rows)) == 64
    assert abs(rows.mean() - 3200) < 3 * 6400 / np.sqrt(12 * 64)  # three standard errors
    assert set(np.argsort(priorities(0, 6400))[:64]) == {int(row) for row in rows}


def test_what_never_changes_shows() -> None:
    still = InputStatistics(2)
    still.add(np.ones((3, 2), np.float32))
    assert still.constant
    still.add(np.array([[1, 2]], np.float32))
    assert not still.constant


def test_tensors_round_trip() -> None:
    seen = InputStatistics(5, sample_rows=9)
    seen.add(spread_rows(2, 30))
    again = InputStatistics.from_tensors(seen.tensors())
    x = spread_rows(3, 20)
    seen.add(x)
    again.add(x)
    for name, value in seen.tensors().items():
        np.testing.assert_array_equal(again.tensors()[name], value)
    with pytest.raises(ValueError, match="statistics"):
        InputStatistics.from_tensors({"min": np.zeros(3)})


def test_nothing_added_is_nothing_seen() -> None:
    seen = InputStatistics(3)
    seen.add(np.zeros((0, 3), np.float32))
    assert seen.count == 0
