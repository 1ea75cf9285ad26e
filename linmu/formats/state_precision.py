"""What states are stored as between calls: recurrent ones in float32 or float16, in a backend's axis order.

Glossary
    exact      float32, whatever a backend stores
    canonical  exact, in the axis order of saved files: what saved states and comparisons are made of
A call reads a state into float32, computes in float32, and rounds once at its end. Only `recurrent` is ever rounded:
conv tails and the keys and values of a text window are a few per cent of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from linmu.errors import InputError
from linmu.specs import StateSpec

STATE_PRECISIONS = {"fp32": "float32", "fp16": "float16"}  # preset -> dtype of `recurrent`
# Rounding to int8 at every step swallows what is smaller than half a code, so that slowly forgetting heads neither
# learn nor forget: another model after 1,000 steps (quantization.md).
RUINOUS = "int8"
LARGEST_HALF = 65504.0  # float16's largest number. float16 states saturate: an infinity would stay for good


def state_precision(name: str | None) -> str:
    """The precision of an export (None: "fp32"); raises InputError for one that does not exist or ruins answers."""
    name = "fp32" if name is None else name
    if name == RUINOUS:
        raise InputError(
            f"--state {name} is not exported: it ruins answers within a thousand steps",
            expected=" or ".join(STATE_PRECISIONS),
        )
    if name not in STATE_PRECISIONS:
        raise InputError("state precision", got=repr(name), expected="one of " + ", ".join(STATE_PRECISIONS))
    return name


def exact_specs(specs: Sequence[StateSpec]) -> tuple[StateSpec, ...]:
    """The states as numbers: all float32."""
    return tuple(replace(spec, dtype="float32") for spec in specs)


def read_exact(specs: Sequence[StateSpec], stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What stored states (axis order of `specs`) stand for: float32 by name."""
    return {spec.name: np.asarray(stored[spec.name], np.float32) for spec in specs}


def store(specs: Sequence[StateSpec], exact: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `read_exact`: float32 states rounded to what `specs` say."""
    rounded = {}
    for spec in specs:
        values = exact[spec.name]
        if spec.dtype == "float16":
            values = np.clip(values, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
        rounded[spec.name] = values
    return rounded


def canonical(specs: Sequence[StateSpec], stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stored states (axis order of `specs`) in the axis order of saved states, float32, by name."""
    exact = read_exact(specs, stored)
    return {spec.name: _reordered(exact[spec.name], spec.axes, spec.canonical_axes) for spec in specs}


def from_canonical(specs: Sequence[StateSpec], states: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `canonical`: states in the axis order of `specs`, stored as they say."""
    exact = {spec.name: _reordered(states[spec.name], spec.canonical_axes, spec.axes) for spec in specs}
    return store(specs, exact)


def _reordered(values: np.ndarray, current: tuple[str, ...], wanted: tuple[str, ...]) -> np.ndarray:
    return np.ascontiguousarray(np.transpose(values, [current.index(axis) for axis in wanted]))
