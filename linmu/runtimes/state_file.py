"""Saved states: one safetensors file in canonical axis order, refused when it belongs to another model.

A backend may keep a state in another axis order (`StateSpec.axes`) and round it (linmu.state_precision); files hold
float32 in canonical order, and the change is made here, at the border.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from linmu.atomic import write_bytes
from linmu.errors import InputError, StateError
from linmu.manifest import CANONICAL_AXES, state_kind
from linmu.safetensors_file import parse_header, read_header, steady_bytes
from linmu.specs import StateSpec
from linmu.state_precision import exact_specs, read_exact, store

FORMAT = "linmu-state"
FORMAT_VERSION = "1"
_RESERVED = ("format", "format_version", "model_hash", "sha256")


def save_state(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    specs: Sequence[StateSpec],
    model_hash: str,
    position: Mapping[str, Any],
) -> None:
    """Write all states (`past.*` names, in the axis order of `specs`) to `path` in one step; equal states, equal bytes.

    `position` holds at least "position" (rotary position of the next token) and "tokens" (tokens seen), and any other
    JSON values. Raises StateError on a missing, surplus, misshapen or non-finite tensor, InputError on a full disk.
    """
    _check_position(str(path), position)
    _check_tensors("the state to save", tensors, specs, canonical=False)
    exact = read_exact(specs, tensors)
    canonical = {
        spec.name: np.ascontiguousarray(np.transpose(exact[spec.name], _order(spec.axes, _canonical(spec))))
        for spec in exact_specs(specs)
    }
    metadata = {
        **{key: json.dumps(value, allow_nan=False) for key, value in position.items()},
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_hash": model_hash,
        "sha256": _digest(canonical),
    }
    write_bytes(Path(path), steady_bytes(save_tensors(canonical, metadata)))


def load_state(path: Path, specs: Sequence[StateSpec], model_hash: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a state file: the tensors in the axis order of `specs`, and the `position` mapping it was saved with.

    Raises StateError when the file is damaged, no state, of another model, or a tensor is missing, misshapen or NaN.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT or metadata.get("format_version") != FORMAT_VERSION:
        found = f"{metadata.get('format')} version {metadata.get('format_version')}"
        raise StateError(f"{path} is no state file", got=found, expected=f"{FORMAT} version {FORMAT_VERSION}")
    if metadata.get("model_hash") != model_hash:
        raise StateError(
            f"{path} belongs to another model",
            got=f"model hash {metadata.get('model_hash', 'none')[:16]}",
            expected=model_hash[:16],
            fix="load it with the bundle that saved it",
        )
    _check_tensors(str(path), tensors, exact_specs(specs), canonical=True)
    if metadata.get("sha256") != _digest(tensors):
        raise StateError(f"{path} was changed after it was saved", fix="save the state again")
    position = _read_position(path, metadata)
    restored = {
        spec.name: np.ascontiguousarray(np.transpose(tensors[spec.name], _order(_canonical(spec), spec.axes)))
        for spec in exact_specs(specs)
    }
    return store(specs, restored), position


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    try:
        header = read_header(path)
        raw = path.read_bytes()
        parse_header(raw[8 : header.data_start], len(raw) - header.data_start, str(path))  # unchanged since
    except OSError as error:
        raise StateError(f"cannot read {path}", got=error.strerror) from error
    except InputError as error:
        raise StateError(error.what, got=error.got, expected=error.expected, fix="save the state again") from error
    if unknown := sorted({entry.dtype for entry in header.tensors.values()} - {"F32", "F16", "I8", "I32", "I64", "U8"}):
        raise StateError(f"{path}: dtype of a state", got=unknown[0], expected="one numpy has")
    return dict(header.metadata), load_tensors(raw)


def _check_tensors(where: str, tensors: Mapping[str, np.ndarray], specs: Sequence[StateSpec], canonical: bool) -> None:
    wanted = {spec.name for spec in specs}
    if missing := sorted(wanted - set(tensors)):
        raise StateError(f"{where} lacks {missing[0]}", expected=f"{len(wanted)} tensors")
    if surplus := sorted(set(tensors) - wanted):
        raise StateError(f"{where} has a tensor the model does not: {surplus[0]}")
    symbols: dict[str, int] = {}
    for spec in specs:
        array = tensors[spec.name]
        sizes = dict(zip(spec.axes, spec.shape, strict=True))
        shape = tuple(sizes[axis] for axis in (_canonical(spec) if canonical else spec.axes))
        if str(array.dtype) != spec.dtype or not _fits(array.shape, shape, symbols):
            raise StateError(
                f"{where}: {spec.name}",
                got=f"{array.dtype}{list(array.shape)}",
                expected=f"{spec.dtype}[{', '.join(map(str, shape))}]",
            )
        if not np.isfinite(array).all():
            raise StateError(f"{where}: {spec.name} has NaN or infinite values", fix="start from an earlier state")


def _fits(actual: tuple[int, ...], shape: tuple[int | str, ...], symbols: dict[str, int]) -> bool:
    """Whether sizes agree; a symbolic dimension (the batch) must be the same in every tensor."""
    if len(actual) != len(shape):
        return False
    return all(
        found == (symbols.setdefault(wanted, found) if isinstance(wanted, str) else wanted)
        for found, wanted in zip(actual, shape, strict=True)
    )


def _check_position(where: str, position: Mapping[str, Any]) -> None:
    for name in ("position", "tokens"):
        value = position.get(name)
        if type(value) is not int or value < 0:
            raise StateError(f"{where}: {name}", got=repr(value), expected="a count")
    if reserved := sorted(set(position) & set(_RESERVED)):
        raise StateError(f"{where}: {reserved[0]} is set by the file format itself")


def _read_position(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        position = {key: json.loads(value) for key, value in metadata.items() if key not in _RESERVED}
    except ValueError as error:
        raise StateError(f"{path}: metadata are damaged", got=error, fix="save the state again") from error
    _check_position(str(path), position)
    return position


def _canonical(spec: StateSpec) -> tuple[str, ...]:
    return CANONICAL_AXES[state_kind(spec.name)]


def _order(current: Sequence[str], wanted: Sequence[str]) -> list[int]:
    return [list(current).index(axis) for axis in wanted]


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    digest = sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
