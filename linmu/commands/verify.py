"""`linmu verify`: whether every backend says what the reference says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linmu.commands.options import BundleArgument, JsonOption
from linmu.commands.output import open_results, require_modules, say
from linmu.errors import CheckFailed

EXAMPLES = "Example: linmu verify bundle --student student --steps 200 --json"


def command(
    bundle: BundleArgument,
    student: Annotated[Path | None, typer.Option("--student", help="Compare with this student (needs torch).")] = None,
    calibration: Annotated[
        Path | None, typer.Option("--calib", help="With --student: the record of a quantized phone bundle.")
    ] = None,
    backends: Annotated[
        list[str] | None, typer.Option("--backend", help="A backend to check; may be repeated (default: all here).")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Decode steps of the roll-out.")] = 64,
    report_file: Annotated[Path | None, typer.Option("--report", help="Also write an HTML report.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Check every backend available here against the reference: graphs, roll-out with states, greedy tokens."""
    if student is not None:
        require_modules("linmu verify --student", "convert", "torch", "transformers")
    with open_results() as results:
        from linmu.tools.verify import verify as verify_bundle

        report = verify_bundle(
            bundle,
            student=student,
            calibration=calibration,
            backends=tuple(backends or ()),
            steps=steps,
            report=report_file,
            progress=say,
        )
        results.report(report, json_output)
        if not report.ok:
            raise CheckFailed(f"{bundle} does not agree with its reference", fix="see the levels that failed above")
