"""Target onnx: a bundle for ONNX Runtime, with its fused and recurrent kernels or in standard operators."""

from __future__ import annotations

from pathlib import Path

from linmu.errors import InputError
from linmu.export.bundles.writer import ExportReport, Plan, Progress, write_planned
from linmu.export.onnx.decoder_graphs import FUSED, PLAIN
from linmu.export.targets import find_target, stored_floats
from linmu.export.vision.graph import OPSET as VISION_OPSET
from linmu.formats.state_precision import state_precision
from linmu.quantize.plan import planned

TARGET = "onnx"
BACKENDS = ("onnxruntime", "torch")


def write_bundle(
    student: Path,
    out: Path,
    *,
    preset: str | None = None,
    plain_ops: bool = False,
    calibration: Path | None = None,
    budget_bytes: int | None = None,
    state: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export the student folder `student` to the bundle folder `out`.

    preset: "none" or "fp32", or "fp16" (matrices stored in half precision, computed in float32). plain_ops:
    standard ONNX operators only. A preset of linmu.formats.presets, or "auto" with `budget_bytes` for matrices and
    one state, needs `calibration`, a record of this student. state: "fp32" (default, unless "auto" chooses) or "fp16",
    what recurrent states are rounded to between calls. progress(text) and progress(text, done, total) report.
    Raises InputError for an unusable student or preset; nothing is left behind then.
    """
    quantization = planned(TARGET, preset, calibration, budget_bytes, state=state)
    if quantization and plain_ops:
        raise InputError("--plain-ops with a quantized preset", expected="one of the two", fix="--target jetson")
    weights = "fp16" if quantization else stored_floats(preset, find_target(TARGET))
    style = PLAIN if plain_ops else FUSED
    plan = Plan(
        TARGET, BACKENDS, weights, "fp32", style, VISION_OPSET, quantization=quantization, state=state_precision(state)
    )
    return write_planned(student, out, plan, overwrite=overwrite, progress=progress)
