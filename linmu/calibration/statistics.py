"""Streaming statistics of what flows into one matrix product: memory does not depend on how much was seen.

Glossary
    C       channels of the input (rows of the weight [C, out])
    rows    a uniform sample of at most `kept` input rows: of all rows those with the smallest seeded priorities,
            so that the sample does not depend on how the rows were handed over
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

KEPT_ROWS = 256

_FIELDS = ("min", "max", "rows", "priorities")


@dataclass
class InputStatistics:
    """Of one input [N, C]: extrema per channel and sampled rows; `count` rows were seen."""

    channels: int
    sample_rows: int = KEPT_ROWS
    count: int = 0
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.values:
            self.values = {
                "min": np.full(self.channels, np.inf, np.float32),
                "max": np.full(self.channels, -np.inf, np.float32),
                "rows": np.zeros((0, self.channels), np.float32),
                "priorities": np.zeros(0, np.uint64),
            }

    def add(self, x: np.ndarray) -> None:
        """Take rows x [N, C] of finite float32 into account."""
        if not len(x):
            return
        values = self.values
        np.minimum(values["min"], x.min(axis=0), out=values["min"])
        np.maximum(values["max"], x.max(axis=0), out=values["max"])
        self._sample(x)
        self.count += len(x)

    def _sample(self, x: np.ndarray) -> None:
        new = priorities(self.count, len(x))
        present = self.values["priorities"]
        if len(present) == self.sample_rows:  # most rows are out of the running
            chosen = new < present.max()
            x, new = x[chosen], new[chosen]
        if not len(new):
            return
        every = np.concatenate([present, new])
        order = np.argsort(every, kind="stable")[: self.sample_rows]
        self.values["rows"] = np.concatenate([self.values["rows"], x])[order]
        self.values["priorities"] = every[order]

    @property
    def amax(self) -> np.ndarray:
        """Largest |x| of every channel, [C] float32."""
        return np.maximum(np.abs(self.values["min"]), np.abs(self.values["max"]))

    @property
    def constant(self) -> bool:
        """Whether no channel ever changed."""
        return self.count > 1 and bool((self.values["min"] == self.values["max"]).all())

    def tensors(self) -> dict[str, np.ndarray]:
        """Everything as tensors, for a file."""
        return {**self.values, "count": np.array([self.count, self.sample_rows], np.int64)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> InputStatistics:
        """Read `tensors` back; raises KeyError when one is missing, ValueError for what no input can have given."""
        if set(tensors) != {*_FIELDS, "count"} or tensors["count"].shape != (2,):
            raise ValueError(f"statistics {sorted(tensors)}")
        count, sample_rows = (int(n) for n in tensors["count"])
        channels, fresh = tensors["min"].size, cls(tensors["min"].size, sample_rows, count)
        rows = min(count, sample_rows)
        for name, empty in fresh.values.items():
            value = tensors[name]
            shape = (rows, *empty.shape[1:]) if name in ("rows", "priorities") else empty.shape
            if value.dtype != empty.dtype or value.shape != shape:
                raise ValueError(f"{name} of {value.dtype}{list(value.shape)} for {count} rows of {channels} channels")
        if count < 0 or sample_rows < 1 or not channels or not _plausible(tensors, count):
            raise ValueError(f"statistics of {count} rows that no rows can have")
        return cls(channels, sample_rows, count, {name: np.array(tensors[name]) for name in _FIELDS})


def _plausible(tensors: dict[str, np.ndarray], count: int) -> bool:
    """Whether numbers can have been seen: finite (others are refused before they are added), rows inside extrema."""
    if not count:
        return True
    low, high, rows = tensors["min"], tensors["max"], tensors["rows"]
    finite = all(np.isfinite(x).all() for x in (low, high, rows))
    return finite and bool((low <= high).all() and (low <= rows).all() and (rows <= high).all())


def priorities(start: int, count: int) -> np.ndarray:
    """Pseudo-random numbers [count] uint64 of the row numbers start..start+count (splitmix64): the same everywhere."""
    with np.errstate(over="ignore"):
        x = (np.arange(start, start + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
