from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linmu.config import WindowSize
from linmu.errors import InputError
from linmu.layout import pack_windows, window_pieces

grids = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 9))
windows = st.builds(WindowSize, st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))


def swin_mask(grid, window: WindowSize, shifted: bool) -> np.ndarray:
    """Who attends to whom [n, n], by Swin's own recipe: pad, roll, cut into windows, mask regions across the seam."""
    sizes = [min(n, w) for n, w in zip(grid, (window.frames, window.rows, window.columns), strict=True)]
    raw = (window.frames, window.rows, window.columns)
    shifts = [w // 2 if shifted and n > w else 0 for n, w in zip(grid, raw, strict=True)]
    raster = np.arange(np.prod(grid)).reshape(grid)
    padded = np.pad(raster, [(0, -n % w) for n, w in zip(grid, sizes, strict=True)], constant_values=-1)
    rolled = np.roll(padded, [-s for s in shifts], axis=(0, 1, 2))
    window_id, region = np.zeros(rolled.shape, int), np.zeros(rolled.shape, int)
    for axis, (w, s) in enumerate(zip(sizes, shifts, strict=True)):
        line = np.arange(rolled.shape[axis])
        labels = np.zeros(len(line), int)
        if s:
            labels[-w:-s], labels[-s:] = 1, 2
        shape = [1, 1, 1]
        shape[axis] = -1
        window_id = window_id * 100 + (line // w).reshape(shape)
        region = region * 3 + labels.reshape(shape)
    real = rolled.reshape(-1) >= 0
    token, key = rolled.reshape(-1)[real], (window_id * 1000 + region).reshape(-1)[real]
    by_token = np.empty(len(token), int)
    by_token[token] = key
    return by_token[:, None] == by_token[None, :]


@given(grids, windows, st.booleans())
def test_windows_are_those_of_swins_cyclic_shift(grid, window, shifted):
    pieces = window_pieces(grid, window, shifted)
    n = int(np.prod(grid))
    np.testing.assert_array_equal(np.sort(np.concatenate(pieces)), np.arange(n))
    mask = np.zeros((n, n), bool)
    for piece in pieces:
        assert np.all(np.diff(piece) > 0)
        assert len(piece) <= window.frames * window.rows * window.columns
        mask[np.ix_(piece, piece)] = True
    np.testing.assert_array_equal(mask, swin_mask(grid, window, shifted))


def test_a_small_dimension_is_never_shifted():
    pieces = window_pieces((1, 3, 7), WindowSize(2, 3, 4), True)
    assert [piece.tolist() for piece in pieces] == [
        [0, 1, 7, 8, 14, 15],
        [2, 3, 4, 5, 9, 10, 11, 12, 16, 17, 18, 19],
        [6, 13, 20],
    ]


@given(st.lists(st.integers(1, 7), max_size=12), st.integers(7, 11))
def test_packing_keeps_every_piece_whole_and_wastes_no_row(sizes, length):
    bounds = np.cumsum([0, *sizes])
    pieces = [np.arange(low, high) for low, high in zip(bounds[:-1], bounds[1:], strict=True)]
    index, segment = pack_windows(pieces, length)
    assert index.shape == segment.shape == (len(index), length)
    assert np.all(index[segment < 0] == 0)
    found = [
        row[marks == number] for row, marks in zip(index, segment, strict=True) for number in sorted({*marks} - {-1})
    ]
    assert [piece.tolist() for piece in found] == [piece.tolist() for piece in pieces]
    used = (segment >= 0).sum(1)
    first = [int((marks == 0).sum()) for marks in segment]
    assert all(used[row - 1] + first[row] > length for row in range(1, len(index)))


def test_a_piece_longer_than_a_row_is_refused():
    with pytest.raises(InputError, match="does not fit"):
        pack_windows([np.arange(5)], 4)
