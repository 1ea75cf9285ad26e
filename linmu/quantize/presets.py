"""What a preset does to which matrices: literal tables.

Never quantized, in any preset: decay, Delta, gates and alpha (the columns `controls` of a layer's input projection),
convolutions, norms, the recurrence itself, rotary tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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

# (target, preset): each needs a calibration record.
PRESETS: dict[str, dict[str, Preset]] = {
    "onnx": {
        "int8": Preset(INT8, head=INT8_32),
        "int4": Preset(INT4_32, head=INT8_32),
    },
    "jetson": {"int8": Preset(INT8), "int4": Preset(INT4_128), "fp8": Preset(FP8)},
    "android": PHONE,
    "ios": PHONE,
}

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


@dataclass(frozen=True)
class Quantization:
    """What an export is asked for: a preset of the target (or "auto" with a byte budget), and the record.

    head: whether the head may be quantized. A tied head is the table of embeddings too, and standard operators cannot
    read rows of packed integers. state: what states are to be rounded to, for "auto" (None: it chooses).
    """

    target: str
    preset: str
    record: Path
    budget_bytes: int | None = None
    head: bool = True
    state: str | None = None


def planned(
    target: str,
    preset: str | None,
    record: Path | None,
    budget_bytes: int | None = None,
    head: bool = True,
    state: str | None = None,
) -> Quantization | None:
    """The quantization of a target's preset, or None for a preset of float precision.

    A record alone stands for the target's preset of RECORDED, if there is one. Raises InputError for a preset that the
    target has not, one that lacks its record, and a budget without "auto".
    """
    if preset is None and record is not None:
        preset = RECORDED.get(target)
    if preset is None or preset in ("none", "fp32", "fp16"):
        if record is not None or budget_bytes is not None:
            option = "--calib" if record is not None else "--budget"
            raise InputError(f"{option} with a float preset", got=preset or "the default", fix="name one with --quant")
        return None
    if preset == AUTO and target not in AUTO_SCHEMES:
        raise InputError(f"target {target!r} has no --quant auto", expected=", ".join(AUTO_SCHEMES))
    if preset != AUTO:
        find_preset(target, preset)
    if (preset == AUTO) != (budget_bytes is not None):
        raise InputError(
            "--budget and --quant auto belong together", got=f"--quant {preset}", expected="--quant auto --budget BYTES"
        )
    if record is None:
        raise InputError(
            f"--quant {preset} needs a calibration record",
            fix="linmu calibrate STUDENT --data DATA -o calib.safetensors, then --calib FILE",
        )
    return Quantization(target, preset, record, budget_bytes, head, state)
