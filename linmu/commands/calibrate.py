"""`linmu calibrate`: what activations and states reach, on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linmu.commands.options import JsonOption
from linmu.commands.output import open_results, progress_bar, require_modules, say

EXAMPLES = "Example: linmu calibrate student --data samples -o calib.safetensors"


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Record to write (.safetensors).", show_default=False)],
    student: Annotated[Path | None, typer.Argument(help="Student folder.", show_default="the demo student")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Data folder like those it will be asked.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Taken at even distances from the data.")] = 128,
    decode_tokens: Annotated[int, typer.Option("--decode-tokens", min=0, help="Own tokens after each answer.")] = 32,
    long_tokens: Annotated[int, typer.Option("--long-tokens", min=0, help="Own tokens after the last one.")] = 1024,
    state_tokens: Annotated[
        int, typer.Option("--state-tokens", min=0, help="Length at which to measure what float16 states change.")
    ] = 4096,
    allow_random: Annotated[bool, typer.Option("--allow-random", help="Without data: noise.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Measure activations and states over real data, once, for every target and preset; an interrupted run goes on."""
    from linmu.demo import student_folder
    from linmu.formats.model_files import require_exportable

    student = student or student_folder()
    require_modules("linmu calibrate", "convert", "torch", "transformers")
    require_exportable(student)
    with open_results() as results:
        from linmu.calibration.collect import calibrate

        with progress_bar("calibrating") as progress:
            record = calibrate(
                student,
                out,
                data=data,
                samples=samples,
                decode_tokens=decode_tokens,
                long_tokens=long_tokens,
                state_tokens=state_tokens,
                allow_random=allow_random,
                progress=progress,
            )
        tokens = record.tokens
        say(f"{record.done} samples, {tokens['prefill']} prompt tokens and {tokens['decode']} decode steps: {out}")
        if json_output:
            results.json({"record": str(out), **record.summary()})
