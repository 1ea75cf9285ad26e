"""What a preset does to which matrices of a target's bundles, and what stays float: literal tables.

Never quantized, in any preset: decay, Delta, gates and alpha (the columns `controls` of a layer's input projection),
convolutions, norms, the recurrence itself, rotary tables.
"""

from __future__ import annotations

from dataclasses import dataclass

from linmu.errors import InputError
from linmu.formats.matrix_format import MatrixFormat

LAYER_MATRICES = ("in_proj", "swin", "out_proj", "gate_up", "down")


@dataclass(frozen=True)
class Scheme:
    """A matrix format and the algorithm that prepares for it: "max", "smoothquant", "awq_lite" or "awq_full".

    awq_full: AWQ's factors on inputs (lite), then its search for a largest |w| by group (Lin et al. 2024, 2306.00978).
    """

    format: MatrixFormat
    algorithm: str


@dataclass(frozen=True)
class Preset:
    """Schemes of the layers' matrices, of the head, and of a table of embeddings that is not the head (None: float)."""

    layers: Scheme | None
    head: Scheme | None = None
    table: Scheme | None = None


INT8 = Scheme(MatrixFormat("int8", input="int8"), "smoothquant")
INT8_32 = Scheme(MatrixFormat("int8", group=32, input="int8_blocks"), "max")
FP8 = Scheme(MatrixFormat("fp8", input="fp8"), "max")
INT4_128 = Scheme(MatrixFormat("int4", group=128), "awq_full")
INT4_32 = Scheme(MatrixFormat("int4", group=32, input="int8_blocks"), "awq_full")
INT8_ROWS = Scheme(MatrixFormat("int8", input="int8_rows"), "max")
INT8_ROWS_SMOOTH = Scheme(MatrixFormat("int8", input="int8_rows"), "smoothquant")
INT4_ROWS = Scheme(MatrixFormat("int4", group=32, input="int8_rows"), "awq_full")
INT8_TABLE = Scheme(MatrixFormat("int8"), "max")  # looked up, not multiplied: a scale for every token
PHONE = {
    "8da4w": Preset(INT4_ROWS, head=INT8_ROWS, table=INT8_TABLE),
    "8da8w": Preset(INT8_ROWS_SMOOTH, head=INT8_ROWS, table=INT8_TABLE),
}

# By target and preset: those that quantize, each needs a calibration record.
PRESETS: dict[str, dict[str, Preset]] = {
    "onnx": {
        "int8": Preset(INT8, head=INT8_32),
        "int4": Preset(INT4_32, head=INT8_32),
    },
    "jetson": {"int8": Preset(INT8), "int4": Preset(INT4_128), "fp8": Preset(FP8)},
    "android": PHONE,
    "ios": PHONE,
}

# By target: presets that keep every matrix float, and its type; and the type of what quantized presets leave float.
FLOAT_PRESETS: dict[str, dict[str, str]] = {
    "onnx": {"none": "fp32", "fp16": "fp16"},
    "jetson": {"fp16": "fp16"},
    "android": {"none": "fp32"},
    "ios": {"none": "fp32"},
}
QUANTIZED_FLOATS = {"onnx": "fp16", "jetson": "fp16", "android": "fp32", "ios": "fp32"}

RECORDED = {"android": "8da4w", "ios": "8da4w"}
AUTO = "auto"
AUTO_SCHEMES: dict[str, list[Scheme]] = {"onnx": [INT4_32, INT8_32], "jetson": [INT4_128]}  # beside float16


def find_preset(target: str, name: str) -> Preset:
    """The quantized preset of a target; raises InputError for one that it has not."""
    found = PRESETS.get(target, {})
    if name not in found:
        float_ones = ("fp16", AUTO) if target in AUTO_SCHEMES else ("fp32",)
        expected = ", ".join(("one of none", *float_ones, *found))
        raise InputError(f"preset of target {target!r}", got=repr(name), expected=expected)
    return found[name]
