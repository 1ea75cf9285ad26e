"""Streaming statistics of what flows into one matrix product: memory does not depend on how much was seen.

Glossary
    C           channels of the input (rows of the weight [C, out])
    histogram   counts of |x| in BINS bins that are equally wide in log2|x|: a percentile is right to one bin (2.2%)
    rows        a uniform sample of at most `kept` input rows: of all rows those with the smallest seeded priorities,
                so that the sample does not depend on how the rows were handed over
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BINS_PER_OCTAVE = 32
LOWEST_OCTAVE, OCTAVES = -32, 64  # |x| from 2^-32 to 2^32; smaller ones (and zeros) fall into the first bin
BINS = BINS_PER_OCTAVE * OCTAVES
KEPT_ROWS = 256

_FIELDS = ("min", "max", "sum_abs", "sum_square", "histogram", "rows", "priorities")


@dataclass
class InputStatistics:
    """Of one input [N, C]: extrema and sums per channel, histogram of |x|, sampled rows; `count` rows were seen."""

    channels: int
    kept: int = KEPT_ROWS
    count: int = 0
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.values:
            self.values = {
                "min": np.full(self.channels, np.inf, np.float32),
                "max": np.full(self.channels, -np.inf, np.float32),
                "sum_abs": np.zeros(self.channels, np.float64),
                "sum_square": np.zeros(self.channels, np.float64),
                "histogram": np.zeros(BINS, np.int64),
                "rows": np.zeros((0, self.channels), np.float32),
                "priorities": np.zeros(0, np.uint64),
            }

    def add(self, x: np.ndarray) -> None:
        """Take rows x [N, C] float32 into account; values that are not finite show in `finite`."""
        if not len(x):
            return
        values, size = self.values, np.abs(x)
        np.minimum(values["min"], x.min(axis=0), out=values["min"])
        np.maximum(values["max"], x.max(axis=0), out=values["max"])
        values["sum_abs"] += size.sum(axis=0, dtype=np.float64)
        values["sum_square"] += np.einsum("nc,nc->c", x, x, dtype=np.float64)
        values["histogram"] += np.bincount(_bins(size.ravel()), minlength=BINS)
        self._sample(x)
        self.count += len(x)

    def _sample(self, x: np.ndarray) -> None:
        new = priorities(self.count, len(x))
        held = self.values["priorities"]
        if len(held) == self.kept:  # most rows are out of the running
            chosen = new < held.max()
            x, new = x[chosen], new[chosen]
        if not len(new):
            return
        every = np.concatenate([held, new])
        order = np.argsort(every, kind="stable")[: self.kept]
        self.values["rows"] = np.concatenate([self.values["rows"], x])[order]
        self.values["priorities"] = every[order]

    @property
    def finite(self) -> bool:
        """Whether everything seen was a finite number."""
        return bool(np.isfinite(self.values["sum_square"]).all())

    @property
    def amax(self) -> np.ndarray:
        """Largest |x| of every channel, [C] float32."""
        return np.maximum(np.abs(self.values["min"]), np.abs(self.values["max"]))

    @property
    def constant(self) -> bool:
        """Whether no channel ever changed."""
        return self.count > 1 and bool((self.values["min"] == self.values["max"]).all())

    @property
    def mean_abs(self) -> np.ndarray:
        """Mean of |x| of every channel, [C] float32."""
        return (self.values["sum_abs"] / max(self.count, 1)).astype(np.float32)

    def percentile(self, share: float) -> float:
        """A size that at least `share` of all |x| do not exceed (the upper edge of a bin, at most the largest)."""
        counts = np.cumsum(self.values["histogram"])
        place = int(np.searchsorted(counts, share * counts[-1]))
        edge = 2.0 ** (LOWEST_OCTAVE + (place + 1) / BINS_PER_OCTAVE)
        return min(edge, float(self.amax.max()))

    def tensors(self) -> dict[str, np.ndarray]:
        """Everything as tensors, for a file."""
        return {**self.values, "count": np.array([self.count, self.kept], np.int64)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> InputStatistics:
        """Read `tensors` back; raises KeyError when one is missing, ValueError for what no input can have given."""
        if set(tensors) != {*_FIELDS, "count"} or tensors["count"].shape != (2,):
            raise ValueError(f"statistics {sorted(tensors)}")
        count, kept = (int(n) for n in tensors["count"])
        channels, found = tensors["min"].size, cls(tensors["min"].size, kept, count)
        rows = min(count, kept)
        for name, empty in found.values.items():
            value = tensors[name]
            shape = (rows, *empty.shape[1:]) if name in ("rows", "priorities") else empty.shape
            if value.dtype != empty.dtype or value.shape != shape:
                raise ValueError(f"{name} of {value.dtype}{list(value.shape)} for {count} rows of {channels} channels")
        if count < 0 or kept < 1 or not channels or not _plausible(tensors, count):
            raise ValueError(f"statistics of {count} rows that no rows can have")
        return cls(channels, kept, count, {name: np.array(tensors[name]) for name in _FIELDS})


def _plausible(tensors: dict[str, np.ndarray], count: int) -> bool:
    """Whether numbers agree: a NaN or an infinity that was seen stays one, but nothing is smaller than it can be."""
    if not count:
        return True
    with np.errstate(invalid="ignore"):
        rising = not (tensors["min"] > tensors["max"]).any()
        positive = not (tensors["sum_abs"] < 0).any() and not (tensors["sum_square"] < 0).any()
    return rising and positive and not (tensors["histogram"] < 0).any()


def priorities(start: int, count: int) -> np.ndarray:
    """Pseudo-random numbers [count] uint64 of the row numbers start..start+count (splitmix64): the same everywhere."""
    with np.errstate(over="ignore"):
        x = (np.arange(start, start + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _bins(size: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        octave = np.log2(size)
        place = np.nan_to_num((octave - LOWEST_OCTAVE) * BINS_PER_OCTAVE, nan=0.0, posinf=BINS, neginf=0.0)
    return np.clip(place.astype(np.int64), 0, BINS - 1)
