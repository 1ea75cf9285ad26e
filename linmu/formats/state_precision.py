"""What recurrent states are stored as between calls: float32, float16, or int8 with a scale for every row.

Glossary
    row     the value_dim numbers of one key of one head: the last axis of a state [B, heads, key_dim, value_dim]
    scale   largest |number| of a row / 127, float32; a row of zeros has scale 0 and codes 0
    exact   float32 in canonical axis order, whatever a backend stores: what saved states and comparisons are made of
A call reads a state into float32, computes in float32, and rounds once at its end. Only `recurrent` is ever rounded:
conv tails and the keys and values of a text window are a few per cent of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from linmu.errors import InputError
from linmu.specs import Dim, StateSpec

STATE_PRECISIONS = {"fp32": "float32", "fp16": "float16", "int8": "int8"}  # preset -> dtype of `recurrent`
# Graphs with int8 states are written and tested. Rounding to them at every step swallows what is smaller than half a
# code, so that slowly forgetting heads neither learn nor forget: another model after 1,000 steps (quantization.md).
EXPORTED = ("fp32", "fp16")
SCALE = "_scale"  # behind the name of a state that is stored as codes
SCALE_AXIS = "scale"  # the last axis of the scales, of size 1
LARGEST_CODE = 127
LARGEST_HALF = 65504.0  # float16 states saturate: an infinity would stay for good


def state_precision(name: str | None) -> str:
    """The precision of an export (None: "fp32"); raises InputError for one that does not exist or is not exported."""
    name = "fp32" if name is None else name
    if name not in STATE_PRECISIONS:
        raise InputError("state precision", got=repr(name), expected="one of " + ", ".join(EXPORTED))
    if name not in EXPORTED:
        raise InputError(
            f"--state {name} is not exported: it ruins answers within a thousand steps", expected=" or ".join(EXPORTED)
        )
    return name


def recurrent_specs(layer: int, shape: tuple[Dim, ...], axes: tuple[str, ...], precision: str) -> list[StateSpec]:
    """The tensors of one layer's recurrent state: one, or codes and scales."""
    dtype = STATE_PRECISIONS[precision]
    found = [StateSpec(f"past.{layer}.recurrent", f"present.{layer}.recurrent", dtype, shape, axes)]
    if precision == "int8":
        names = (f"past.{layer}.recurrent{SCALE}", f"present.{layer}.recurrent{SCALE}")
        found.append(StateSpec(*names, "float32", (*shape[:-1], 1), (*axes[:-1], SCALE_AXIS)))
    return found


def is_scale(name: str) -> bool:
    """Whether a state holds the scales of another one."""
    return name.endswith(SCALE)


def exact_specs(specs: Sequence[StateSpec]) -> tuple[StateSpec, ...]:
    """The states as numbers: all float32, without scales."""
    return tuple(replace(spec, dtype="float32") for spec in specs if not is_scale(spec.name))


def round_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [..., n] and scales float32 [..., 1] of float32 rows [..., n]; half to even, as the graphs do."""
    scale = np.abs(values).max(axis=-1, keepdims=True) / np.float32(LARGEST_CODE)
    codes = np.rint(values / np.where(scale > 0, scale, np.float32(1)))
    return np.clip(codes, -LARGEST_CODE, LARGEST_CODE).astype(np.int8), scale


def read_exact(specs: Sequence[StateSpec], stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What stored states (axis order of `specs`) stand for: float32 by the names of `exact_specs`."""
    found = {}
    for spec in exact_specs(specs):
        values = np.asarray(stored[spec.name], np.float32)
        scale = stored.get(spec.name + SCALE)
        found[spec.name] = values if scale is None else values * scale
    return found


def store(specs: Sequence[StateSpec], exact: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `read_exact`: float32 states rounded to what `specs` say."""
    found = {}
    for spec in specs:
        values = exact[spec.name.removesuffix(SCALE)]
        if spec.dtype == "float16":
            found[spec.name] = np.clip(values, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
        elif spec.dtype == "int8":
            found[spec.name] = round_rows(values)[0]
        else:
            found[spec.name] = round_rows(values)[1] if is_scale(spec.name) else values
    return found
