"""A prompt piece as an engine takes it: windows packed into rows of the engine's length, sizes inside its ranges."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from linmu.errors import InputError
from linmu.layout.windows import pack_windows
from linmu.runtimes.tensorrt.profiles import Ranges

WINDOWS, SEGMENT, SLOT = "layout.windows", "layout.window_segment", "layout.window_slot"

# What the user can do about a dimension that is too large.
REMEDIES = {
    "tokens": "linmu build --max-tokens with a larger number, or smaller pictures",
    "patches": "linmu build --max-tokens with a larger number, or smaller pictures",
}


def repack_windows(layout: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    """The layout with its windows [2,W,L] packed into rows of `row` tokens; the same windows, in the same order.

    Rows that are added have segment -1. Raises ValueError for a window longer than `row`.
    """
    packed = [pack_windows(_pieces(*pair), row) for pair in zip(layout[WINDOWS], layout[SEGMENT], strict=True)]
    shifts, count = len(packed), max(1, *(len(index) for index, _ in packed))
    windows = np.zeros((shifts, count, row), np.int64)
    segment = np.full((shifts, count, row), -1, np.int64)
    slot = np.zeros_like(layout[SLOT])
    for shift, (index, number) in enumerate(packed):
        windows[shift, : len(index)], segment[shift, : len(index)] = index, number
        taken = np.flatnonzero(segment[shift] >= 0)
        slot[shift, windows[shift].reshape(-1)[taken]] = taken
    return {**layout, WINDOWS: windows, SEGMENT: segment, SLOT: slot}


def check_ranges(graph: str, dimensions: Mapping[str, int], ranges: Ranges) -> None:
    """Raise InputError naming the first dimension that the engine was not built for."""
    for name, size in dimensions.items():
        if name in ranges and not ranges[name].holds(size):
            raise InputError(
                f"this prompt needs {name} = {size} in the {graph} engine",
                got=size,
                expected=f"{ranges[name].min} to {ranges[name].max}",
                fix=REMEDIES.get(name, REMEDIES["tokens"]),
            )


def _pieces(index: np.ndarray, segment: np.ndarray) -> list[np.ndarray]:
    """The windows [n] of packed rows [W,L] in order: runs of one row and one segment."""
    rows = np.broadcast_to(np.arange(len(index))[:, None], index.shape)
    taken = segment >= 0
    tokens, names = index[taken], np.stack([rows[taken], segment[taken]], axis=-1)
    if not len(tokens):
        return []
    return np.split(tokens, np.flatnonzero((names[1:] != names[:-1]).any(axis=1)) + 1)
