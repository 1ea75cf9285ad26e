"""What crosses a border: tensors, states and graphs described without torch, as they stand in a manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from linmu.errors import BundleError

Dim = int | str  # a symbolic dimension is a string

# Axis order of a state in a saved file, by the last part of its name.
CANONICAL_AXES = {
    "recurrent": ("batch", "heads", "key_dim", "value_dim"),
    "conv": ("batch", "channels", "taps"),
    "key": ("batch", "heads", "window", "head_dim"),
    "value": ("batch", "heads", "window", "head_dim"),
}


def state_kind(name: str) -> str:
    """The kind of a state, the last part of its name: a key of CANONICAL_AXES; raises BundleError otherwise."""
    kind = name.rpartition(".")[2]
    if kind not in CANONICAL_AXES:
        raise BundleError(f"unknown state {name!r}", expected="a name that ends in " + ", ".join(CANONICAL_AXES))
    return kind


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: name, numpy dtype name, shape with symbolic dimensions as strings."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def to_json(self) -> dict[str, Any]:
        """The manifest's form."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        """Read the manifest's form; raises KeyError on a missing field."""
        return cls(data["name"], data["dtype"], tuple(data["shape"]))


@dataclass(frozen=True)
class StateSpec:
    """One state tensor: input name `past.*`, output name `present.*`, and its axes in storage order.

    `axes` names the graph's axis order; saved files always use the canonical order (CANONICAL_AXES).
    """

    name: str
    output: str
    dtype: str
    shape: tuple[Dim, ...]
    axes: tuple[str, ...]
    init: str = "zeros"

    @property
    def canonical_axes(self) -> tuple[str, ...]:
        """Its axes in the order of saved files; raises BundleError for an unknown kind of state."""
        return CANONICAL_AXES[state_kind(self.name)]

    @property
    def canonical_shape(self) -> tuple[Dim, ...]:
        """Its sizes in the order of saved files."""
        return tuple(self.shape[self.axes.index(axis)] for axis in self.canonical_axes)

    def to_json(self) -> dict[str, Any]:
        """The manifest's form."""
        data = asdict(self)
        return {**data, "shape": list(self.shape), "axes": list(self.axes)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StateSpec:
        """Read the manifest's form; raises KeyError on a missing field."""
        return cls(data["name"], data["output"], data["dtype"], tuple(data["shape"]), tuple(data["axes"]), data["init"])


@dataclass(frozen=True)
class GraphSpec:
    """One graph of a bundle: its file and its checked inputs and outputs."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """The manifest's form."""
        return {
            "file": self.file,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GraphSpec:
        """Read the manifest's form; raises KeyError on a missing field."""
        return cls(
            data["file"],
            tuple(TensorSpec.from_json(item) for item in data["inputs"]),
            tuple(TensorSpec.from_json(item) for item in data["outputs"]),
        )
