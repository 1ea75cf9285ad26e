"""Target jetson: a bundle whose graphs TensorRT compiles on the device, strongly typed, for one sequence at a time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from linmu.export.bundles.writer import ExportReport, Plan, Progress, write_planned
from linmu.export.jetson.engine_check import check_engines
from linmu.export.jetson.ops import JetsonOps
from linmu.export.onnx.decoder_graphs import GraphStyle
from linmu.export.targets import find_target, stored_floats
from linmu.formats.state_precision import state_precision
from linmu.quantize.plan import Quantization, planned

TARGET = "jetson"
BACKENDS = ("tensorrt", "onnxruntime", "torch")
OPSET = 19  # within what TensorRT 10.3 reads, and Gelu is still spelled out
STYLE = GraphStyle("plain", JetsonOps, OPSET, batch=1, fixed_windows=True)


def write_bundle(
    student: Path,
    out: Path,
    *,
    preset: str | None = None,
    compile_check: bool = True,
    calibration: Path | None = None,
    budget_bytes: int | None = None,
    state: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export the student folder `student` to the bundle folder `out`.

    preset: "none" or "fp32", or "fp16" (default): matrices stored and multiplied in half precision, all else in
    float32; or a preset of linmu.formats.presets, or "auto" with `budget_bytes` for matrices and one state: these need
    `calibration`, a record of this student, and what they leave float is as in "fp16". compile_check: compile all
    graphs with TensorRT-RTX, where it is installed; no GPU is needed. state: "fp32" (default, unless "auto" chooses) or
    "fp16", what recurrent states are rounded to between calls.
    progress(text) and progress(text, done, total) report. Raises InputError for an unusable student, record or preset
    and CheckFailed when a graph is not parsed or compiled; nothing is left behind then.
    """
    quantization = planned(TARGET, preset, calibration, budget_bytes, head=False, state=state)
    plan = replace(jetson_plan(preset, compile_check, quantization), state=state_precision(state))
    return write_planned(student, out, plan, overwrite=overwrite, progress=progress)


def jetson_plan(
    preset: str | None = None, compile_check: bool = True, quantization: Quantization | None = None
) -> Plan:
    """What this target decides; raises InputError for a preset that does not exist."""
    weights = "fp16" if quantization else stored_floats(preset, find_target(TARGET))
    check = partial(check_engines, compile_graphs=compile_check)
    return Plan(TARGET, BACKENDS, weights, weights, STYLE, OPSET, compiled=True, check=check, quantization=quantization)
