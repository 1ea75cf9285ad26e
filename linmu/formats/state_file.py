"""Saved states: one safetensors file in canonical axis order, refused when it belongs to another model.

A backend may keep a state in another axis order (`StateSpec.axes`) and round it (state_precision); files hold
float32 in canonical order, and the change is made here, at the border.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_tensors

from linmu.errors import InputError, StateError
from linmu.files.atomic import write_bytes
from linmu.files.strict_json import parse_json
from linmu.formats.safetensors_file import Header, parse_header, read_header, steady_bytes
from linmu.formats.state_precision import canonical, exact_specs, from_canonical
from linmu.specs import StateSpec

FORMAT = "linmu-state"
FORMAT_VERSION = "2"  # 1: a sha256 of the tensors alone
MOST_TOKENS = 1 << 53
_NUMPY = {"F32": "float32", "F16": "float16"}
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
    _check_tensors("the state to save", tensors, specs, saved=False)
    states = canonical(specs, tensors)
    metadata = {
        **{key: json.dumps(value, allow_nan=False) for key, value in position.items()},
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_hash": model_hash,
    }
    metadata["sha256"] = _digest(metadata, states)
    write_bytes(Path(path), steady_bytes(save_tensors(states, metadata)))


def load_state(path: Path, specs: Sequence[StateSpec], model_hash: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a state file: the tensors in the axis order of `specs`, and the `position` mapping it was saved with.

    Raises StateError when the file is damaged, no state, of another model, or a tensor is missing, misshapen or NaN.
    """
    path = Path(path)
    header = _header(path)
    metadata = header.metadata
    if metadata.get("format") != FORMAT or metadata.get("format_version") != FORMAT_VERSION:
        version = f"{metadata.get('format')} version {metadata.get('format_version')}"
        raise StateError(f"{path} is no state file", got=version, expected=f"{FORMAT} version {FORMAT_VERSION}")
    if metadata.get("model_hash") != model_hash:
        raise StateError(
            f"{path} belongs to another model",
            got=f"model hash {metadata.get('model_hash', 'none')[:16]}",
            expected=model_hash[:16],
            fix="load it with the bundle that saved it",
        )
    exact = exact_specs(specs)
    shapes = {name: (_NUMPY.get(entry.dtype, entry.dtype), entry.shape) for name, entry in header.tensors.items()}
    _check_shapes(str(path), shapes, exact, saved=True)  # before anything of their size is read
    tensors = _tensors(path, header)
    _check_finite(str(path), tensors, exact)
    if metadata.get("sha256") != _digest(metadata, tensors):
        raise StateError(f"{path} was changed after it was saved", fix="save the state again")
    position = _read_position(path, metadata)
    return from_canonical(specs, tensors), position


def _header(path: Path) -> Header:
    try:
        return read_header(path)
    except InputError as error:
        raise StateError(error.what, got=error.got, expected=error.expected, fix="save the state again") from error


def _tensors(path: Path, header: Header) -> dict[str, np.ndarray]:
    """All tensors of a file whose header was checked; it must still be the same file."""
    try:
        raw = path.read_bytes()
        again = parse_header(raw[8 : header.data_start], len(raw) - header.data_start, str(path))
    except OSError as error:
        raise StateError(f"cannot read {path}", got=error.strerror) from error
    except InputError as error:
        raise StateError(error.what, got=error.got, expected=error.expected, fix="save the state again") from error
    if again != header:
        raise StateError(f"{path} changed while it was read", fix="load it again")
    return {
        name: np.frombuffer(raw, np.float32, (entry.end - entry.start) // 4, header.data_start + entry.start).reshape(
            entry.shape
        )
        for name, entry in header.tensors.items()
    }


def _check_tensors(where: str, tensors: Mapping[str, np.ndarray], specs: Sequence[StateSpec], saved: bool) -> None:
    _check_shapes(where, {name: (str(x.dtype), x.shape) for name, x in tensors.items()}, specs, saved)
    _check_finite(where, tensors, specs)


def _check_shapes(
    where: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]], specs: Sequence[StateSpec], saved: bool
) -> None:
    """(dtype, shape) by name against the specs, in the axis order of saved files where `saved`.

    Raises StateError for the first difference.
    """
    wanted = {spec.name for spec in specs}
    if missing := sorted(wanted - set(tensors)):
        raise StateError(f"{where} lacks {missing[0]}", expected=f"{len(wanted)} tensors")
    if surplus := sorted(set(tensors) - wanted):
        raise StateError(f"{where} has a tensor the model does not: {surplus[0]}")
    symbols: dict[str, int] = {}
    for spec in specs:
        dtype, actual = tensors[spec.name]
        shape = spec.canonical_shape if saved else spec.shape
        if dtype != spec.dtype or not _fits(actual, shape, symbols):
            raise StateError(
                f"{where}: {spec.name}",
                got=f"{dtype}{list(actual)}",
                expected=f"{spec.dtype}[{', '.join(map(str, shape))}]",
            )


def _check_finite(where: str, tensors: Mapping[str, np.ndarray], specs: Sequence[StateSpec]) -> None:
    for spec in specs:
        if not np.isfinite(tensors[spec.name]).all():
            raise StateError(f"{where}: {spec.name} has NaN or infinite values", fix="start from an earlier state")


def _fits(actual: tuple[int, ...], shape: tuple[int | str, ...], symbols: dict[str, int]) -> bool:
    """Whether sizes agree; a symbolic dimension (the batch) must be the same in every tensor."""
    if len(actual) != len(shape):
        return False
    return all(
        size == (symbols.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
        for size, wanted in zip(actual, shape, strict=True)
    )


def _check_position(where: str, position: Mapping[str, Any]) -> None:
    for name in ("position", "tokens"):
        value = position.get(name)
        if type(value) is not int or not 0 <= value < MOST_TOKENS:
            raise StateError(f"{where}: {name}", got=f"{value!r:.40}", expected="a count")
    if reserved := sorted(set(position) & set(_RESERVED)):
        raise StateError(f"{where}: {reserved[0]} is set by the file format itself")


def _read_position(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        position = {key: parse_json(value, key) for key, value in metadata.items() if key not in _RESERVED}
    except InputError as error:
        raise StateError(f"{path}: metadata are damaged", got=error, fix="save the state again") from error
    _check_position(str(path), position)
    return position


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 of everything in the file but itself: it shows damage, not who wrote the file."""
    hashed = {name: value for name, value in metadata.items() if name != "sha256"}
    digest = sha256(json.dumps(hashed, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
