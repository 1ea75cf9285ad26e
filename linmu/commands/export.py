"""`linmu export`: a student's folder in, a bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linmu.commands.options import JsonOption, OverwriteOption
from linmu.commands.output import open_results, progress_bar, require_modules, say, show_view

EXAMPLES = (
    "Example: linmu export student -o bundle, or linmu export student --target jetson --quant int4 --calib "
    "calib.safetensors -o bundle, or linmu export student --quant auto --budget 3000000 --calib calib.safetensors "
    "-o bundle, or linmu export student --state fp16 -o bundle, or linmu export student --target android -o bundle, or "
    "linmu export student --target ios --delegate coreml -o bundle"
)


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Bundle folder to write.", show_default=False)],
    student: Annotated[Path | None, typer.Argument(help="Student folder.", show_default="the demo student")] = None,
    target: Annotated[str, typer.Option("--target", help="onnx, jetson, android or ios.")] = "onnx",
    preset: Annotated[
        str | None,
        typer.Option("--quant", help="none, fp16, int8, int4, fp8 (jetson), auto; on phones none, 8da4w or 8da8w."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option("--calib", help="Record of `linmu calibrate`, for int8, int4, fp8 and auto.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option("--budget", min=1, help="--quant auto: bytes for the matrices and one state.")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            "--state", help="Recurrent state between calls: fp32 or fp16.", show_default="fp32; chosen by --quant auto"
        ),
    ] = None,
    delegate: Annotated[
        str | None,
        typer.Option(
            "--delegate",
            help="Who computes on the phone: xnnpack; ios: coreml; android: vulkan.",
            show_default="xnnpack",
        ),
    ] = None,
    plain_ops: Annotated[bool, typer.Option("--plain-ops", help="onnx: standard operators only.")] = False,
    compile_check: Annotated[
        bool,
        typer.Option(
            "--compile-check/--no-compile-check",
            help="jetson: compile all graphs with TensorRT-RTX, if it is installed (needs no GPU).",
        ),
    ] = True,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Write a bundle: graphs, weights, tokenizer, golden vectors and a manifest with every hash."""
    from linmu.commands.tables import export_view
    from linmu.demo import student_folder
    from linmu.export.phone.delegates import find_delegate
    from linmu.export.targets import find_target, stored_floats, write_bundle
    from linmu.files.atomic import require_free_folder
    from linmu.formats.model_files import require_exportable
    from linmu.formats.state_precision import state_precision
    from linmu.quantize.plan import planned

    row = find_target(target)  # all that can be wrong here is told before torch takes its seconds to load
    if planned(target, preset, calibration, budget) is None:
        stored_floats(preset, row)
    state_precision(state)
    if delegate is not None and "delegate" in row.options:
        find_delegate(target, delegate, calibration is not None or preset not in (None, "none", "fp32"))
    student = student or student_folder()
    require_free_folder(out, overwrite)
    require_modules("linmu export", "export", "torch", "transformers", "onnx", "onnxscript")
    require_modules(f"linmu export --target {target}", row.extra, *row.packages)
    require_exportable(student)
    with open_results() as results:
        with progress_bar("exporting") as progress:
            report = write_bundle(
                student,
                out,
                target=target,
                preset=preset,
                plain_ops=plain_ops or None,
                compile_check=None if compile_check else False,
                calibration=calibration,
                budget_bytes=budget,
                state=state,
                delegate=delegate,
                overwrite=overwrite,
                progress=progress,
            )
        show_view(export_view(report))
        say(f"bundle written to {out}")
        if json_output:
            results.json({"bundle": str(out), **report.to_json()})
