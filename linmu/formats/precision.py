"""What a bundle's numbers are stored and computed in: a manifest's `precision`, read once.

Glossary
    float matrix      one that is not quantized
    input kind        what inputs of quantized matrices are rounded to: one of linmu.formats.matrix_format.INPUTS
    static, by block  with one scale that calibration found ("int8", "fp8"); with a scale of every block's own
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from linmu.formats.manifest_object import check_keys, check_names, refused
from linmu.formats.matrix_format import INPUTS
from linmu.formats.presets import AUTO, PRESETS
from linmu.formats.state_precision import STATE_PRECISIONS

FLOATS = ("fp32", "fp16")
QUANTIZED = (*dict.fromkeys(name for presets in PRESETS.values() for name in presets), AUTO)
OPERATORS = ("fused", "plain", "executorch")


@dataclass(frozen=True)
class Precision:
    """How a bundle stores and multiplies its matrices, and what it keeps between calls.

    weights: how matrices are stored, one of FLOATS, or the preset that quantized them; floats: how float matrices are
    stored (the same as `weights` where nothing is quantized); group_size: the largest number of rows that share a scale
    (None: a scale for each column); matrix_inputs: input kinds of quantized matrices, sorted; activations: what float
    products are computed in; float32_matrices: names in decoder.json that stay in float32 although activations are
    fp16; state: what `recurrent` is between calls; ops: the decoder's operators (fused: ONNX Runtime's own; plain: the
    standard's); opset, vision_opset: of ONNX graphs; delegate: who computes a phone's program.
    """

    weights: str = "fp32"
    floats: str = "fp32"
    activations: str = "fp32"
    state: str = "fp32"
    ops: str = "plain"
    matrix_inputs: tuple[str, ...] = ()
    float32_matrices: tuple[str, ...] = ()
    group_size: int | None = None
    opset: int | None = None
    vision_opset: int | None = None
    delegate: str | None = None

    @property
    def quantized(self) -> bool:
        """Whether matrices are stored as integers or fp8."""
        return self.weights not in FLOATS

    @property
    def rounds_by_block(self) -> bool:
        """Whether some inputs are rounded to int8 with a scale of every block's own."""
        return "int8_blocks" in self.matrix_inputs

    @property
    def static_int8(self) -> bool:
        """Whether some inputs are rounded to int8 with a scale that calibration found."""
        return "int8" in self.matrix_inputs

    @property
    def static_fp8(self) -> bool:
        """Whether some inputs are rounded to fp8, which always has a scale that calibration found."""
        return "fp8" in self.matrix_inputs

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is None is left out."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value is not None
        }

    @classmethod
    def from_json(cls, data: Any) -> Precision:
        """Read `to_json`'s form; raises BundleError on anything unknown, missing, of a wrong type or contradictory."""
        check_keys(data, _KINDS, "precision", optional=_OPTIONAL)
        lists = {name: tuple(check_names(data[name], f"precision.{name}")) for name in _LISTS}
        precision = cls(**{**data, **lists})
        for name, known in _CHOICES.items():
            if getattr(precision, name) not in known:
                raise refused(f"precision.{name}", repr(getattr(precision, name)), "one of " + ", ".join(known))
        for name in _OPTIONAL:
            if name in data and not data[name]:
                raise refused(f"precision.{name}", repr(data[name]), "another value, or no key")
        inputs = precision.matrix_inputs
        if list(inputs) != sorted(set(inputs)) or not set(inputs) <= set(INPUTS):
            known_inputs = ", ".join(filter(None, INPUTS))
            raise refused("precision.matrix_inputs", list(inputs), f"some of {known_inputs}, sorted")
        if not precision.quantized:
            plain = cls(precision.weights, precision.weights)
            for name in ("floats", "matrix_inputs", "group_size"):
                if getattr(precision, name) != getattr(plain, name):
                    got, weights = getattr(precision, name), precision.weights
                    raise refused(f"precision.{name}", got, f"{getattr(plain, name)!r} beside weights in {weights}")
        return precision


_CHOICES = {
    "weights": FLOATS + QUANTIZED,
    "floats": FLOATS,
    "activations": FLOATS,
    "state": tuple(STATE_PRECISIONS),
    "ops": OPERATORS,
}
_LISTS = ("matrix_inputs", "float32_matrices")
_OPTIONAL = ("group_size", "opset", "vision_opset", "delegate")
_KINDS: dict[str, type] = {
    **dict.fromkeys(_CHOICES, str),
    **dict.fromkeys(_LISTS, list),
    **dict.fromkeys(("group_size", "opset", "vision_opset"), int),
    "delegate": str,
}
