"""Rotary-major scan: the order in which a state-space branch visits the tokens of a span.

"Rotary" means that every line, and every slab of lines, runs against its predecessor, so that two neighbours in the
scan are always neighbours in the grid.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from linmu.errors import InputError
from linmu.layout.types import SCHEDULES

# Axes (t=0, h=1, w=2) from the slowest to the fastest, by schedule.
AXES = (
    (0, 1, 2),  # spatial-row
    (0, 2, 1),  # spatial-column
    (1, 2, 0),  # temporal-row
    (2, 1, 0),  # temporal-column
)


@lru_cache(maxsize=256)
def scan_order(grid: tuple[int, int, int], schedule: int, scan: str = "rms") -> np.ndarray:
    """The raster index visited at each scan position, [t*h*w] int64, read-only (calls share it).

    `scan` is "rms" or "raster"; "raster" is the identity for every schedule.
    Raises InputError for an empty grid, an unknown schedule or an unknown scan.
    """
    if min(grid) < 1 or schedule not in range(SCHEDULES) or scan not in ("rms", "raster"):
        raise InputError(f"no scan order for grid {grid}, schedule {schedule}, scan {scan!r}")
    raster = np.arange(grid[0] * grid[1] * grid[2], dtype=np.int64)
    order = raster if scan == "raster" else _snake(raster.reshape(grid).transpose(AXES[schedule]))
    order.setflags(write=False)
    return order


def _snake(index: np.ndarray) -> np.ndarray:
    """Flatten [slabs, lines, tokens], every odd slab's lines and every odd visited line reversed."""
    slabs = index.copy()
    slabs[1::2] = slabs[1::2, ::-1]
    lines = slabs.reshape(-1, index.shape[2])
    lines[1::2] = lines[1::2, ::-1]
    return lines.reshape(-1)


def invert(order: np.ndarray) -> np.ndarray:
    """The inverse of a permutation [n], int64, such that `inverse[order]` counts from 0 to n-1."""
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.arange(len(order), dtype=np.int64)
    return inverse
