"""Buffers without a GPU: where each tensor of a graph lies in one arena, and whether an engine is the manifest's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from linmu.errors import BundleError
from linmu.formats.manifest import DTYPE_BYTES
from linmu.runtimes.shape_ranges import Range, Ranges, largest
from linmu.specs import GraphSpec, TensorSpec

ALIGNMENT = 256  # bytes; what cudaMalloc guarantees for its own addresses


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its dtype, its largest shape, offset and room in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Arena:
    """Places by tensor name, none overlapping, in `nbytes` bytes."""

    places: dict[str, Place]
    nbytes: int


def plan_arena(tensors: Iterable[TensorSpec], ranges: Ranges | None = None) -> Arena:
    """One place for every tensor at its largest size, in order, each aligned to ALIGNMENT bytes.

    Also an empty tensor gets an address of its own (TensorRT takes no null addresses).
    """
    places: dict[str, Place] = {}
    offset = 0
    for tensor in tensors:
        shape = largest(tensor.shape, ranges or {})
        nbytes = prod(shape) * DTYPE_BYTES[tensor.dtype]
        places[tensor.name] = Place(tensor.dtype, shape, offset, nbytes)
        offset += max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT
    return Arena(places, offset)


def bind_dimensions(spec: GraphSpec, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The value of every symbolic dimension in a call's input shapes.

    Raises BundleError naming the first input that is missing, surplus, of a wrong rank or size, or that contradicts
    another one.
    """
    if set(shapes) != {item.name for item in spec.inputs}:
        odd = sorted(set(shapes) ^ {item.name for item in spec.inputs})
        raise BundleError(f"{spec.file}: input {odd[0]!r}", got="missing or surplus", fix="export again")
    sizes: dict[str, int] = {}
    for item in spec.inputs:
        shape = tuple(shapes[item.name])
        if len(shape) != len(item.shape):
            raise BundleError(
                f"{spec.file}: input {item.name!r}", got=f"shape {list(shape)}", expected=list(item.shape)
            )
        for dim, size in zip(item.shape, shape, strict=True):
            wanted = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
            if wanted != size:
                raise BundleError(
                    f"{spec.file}: input {item.name!r}", got=f"shape {list(shape)}", expected=f"{dim} = {wanted}"
                )
    return sizes


def check_engine(
    name: str, spec: GraphSpec, ranges: Ranges, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Compare an engine's inputs and outputs with the manifest; raises BundleError naming the first difference.

    A dimension of the engine that is not static is -1; a symbolic one of the manifest may be static in the engine
    where its range has one value. TensorRT does not always see that an output's dimension is static: its size is
    held against the manifest when it is known (OpenEngine.check_states).
    """
    for side, wanted, actual_specs in (("input", spec.inputs, inputs), ("output", spec.outputs, outputs)):
        actual, expected = ({item.name: item for item in items} for items in (actual_specs, wanted))
        if odd := sorted(set(actual) ^ set(expected)):
            where = "the manifest" if odd[0] in actual else "the engine"
            raise BundleError(f"engine {name}: {side} {odd[0]!r} is not in {where}", fix="linmu build --force")
        for key, item in expected.items():
            found_shape = actual[key].shape
            if actual[key].dtype != item.dtype or not _fits(item.shape, found_shape, ranges, side == "output"):
                raise BundleError(
                    f"engine {name}: {side} {key!r}",
                    got=f"{actual[key].dtype}{list(actual[key].shape)}",
                    expected=f"{item.dtype}{list(item.shape)}",
                    fix="linmu build --force",
                )


def _fits(wanted: Sequence[int | str], sizes: Sequence[int | str], ranges: Ranges, may_be_unknown: bool) -> bool:
    if len(wanted) != len(sizes):
        return False
    anything = Range(1, 1, 2**62)
    for dim, size in zip(wanted, sizes, strict=True):
        if isinstance(dim, int):
            if size != dim and not (may_be_unknown and size == -1):
                return False
        elif size != -1:
            known = ranges.get(dim, anything)
            if not isinstance(size, int) or (known is not anything and known.max != size):
                return False
    return True
