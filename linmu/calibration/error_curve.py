"""How an error grows with the number of roundings behind it: sums by octave, so that memory does not grow with length.

A curve is [OCTAVES, 2] float64. Row n holds, over all tokens whose state was rounded 2^n to 2^(n+1) - 1 times, the sums
of |moved - y|^2 and of |y|^2; the last row holds whatever lies beyond.
"""

from __future__ import annotations

import numpy as np

OCTAVES = 24


def empty_curve() -> np.ndarray:
    """Nothing seen."""
    return np.zeros((OCTAVES, 2))


def octave(roundings: int) -> int:
    """The row for `roundings` >= 1."""
    return min(roundings.bit_length() - 1, OCTAVES - 1)


def relative_errors(curve: np.ndarray) -> dict[int, float]:
    """Relative error by the fewest roundings of its octave; octaves that no token fell into are left out."""
    return {1 << row: float(np.sqrt(moved / total)) for row, (moved, total) in enumerate(curve) if total > 0}


def checked_curve(values: np.ndarray) -> np.ndarray:
    """A curve as read from a file; raises ValueError for what cannot be one."""
    if values.shape != (OCTAVES, 2) or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"error curve of shape {values.shape} with values that are no sums of squares")
    return np.array(values, np.float64)
