"""Local-Swin windows of one span's grid, and their packing into rows of equal length."""

from __future__ import annotations

from itertools import product

import numpy as np

from linmu.config import WindowSize
from linmu.errors import InputError


def window_pieces(grid: tuple[int, int, int], window: WindowSize, shifted: bool) -> list[np.ndarray]:
    """The partition of a grid's raster indices into windows, each an ascending [n] int64.

    A dimension no larger than its window is one window and never shifted. Shifted, a dimension is cut at half a window
    and then at every window: what Swin's cyclic shift leaves once its mask has closed the seam.
    """
    raster = np.arange(grid[0] * grid[1] * grid[2], dtype=np.int64).reshape(grid)
    sizes = (window.frames, window.rows, window.columns)
    slices = [_slices(length, size, shifted) for length, size in zip(grid, sizes, strict=True)]
    return [raster[box].reshape(-1) for box in product(*slices)]


def _slices(length: int, size: int, shifted: bool) -> list[slice]:
    """Consecutive slices of one dimension; the first and the last may be short."""
    if length <= size:
        return [slice(0, length)]
    first = size // 2 if shifted and size > 1 else size
    cuts = [0, *range(first, length, size), length]
    return [slice(low, high) for low, high in zip(cuts[:-1], cuts[1:], strict=True)]


def pack_windows(pieces: list[np.ndarray], row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack pieces in order into rows, several to a row where they fit: (index [W,L], segment [W,L]) int64.

    `segment` is the piece's number inside its row and -1 on padding, where `index` is 0.
    Raises InputError for a piece longer than a row.
    """
    places, row, column, number = [], 0, 0, 0
    for piece in pieces:
        if len(piece) > row_length:
            raise InputError(f"a window of {len(piece)} tokens does not fit a row of {row_length}")
        if column + len(piece) > row_length:
            row, column, number = row + 1, 0, 0
        places.append((row, column, number))
        column, number = column + len(piece), number + 1
    rows = row + 1 if pieces else 0
    index, segment = np.zeros((rows, row_length), np.int64), np.full((rows, row_length), -1, np.int64)
    for piece, (row, column, number) in zip(pieces, places, strict=True):
        index[row, column : column + len(piece)] = piece
        segment[row, column : column + len(piece)] = number
    return index, segment
