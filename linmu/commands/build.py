"""`linmu build`: a bundle's engines, compiled on the device."""

from __future__ import annotations

from typing import Annotated

import typer

from linmu.commands.options import BundleArgument, JsonOption
from linmu.commands.output import open_results, progress_bar, say

EXAMPLES = "Example: linmu build bundle --max-tokens 4096 --json"


def command(
    bundle: BundleArgument,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, help="Most tokens of one prefill call; a picture must fit (default 2048)."),
    ] = None,
    tensorrt: Annotated[str, typer.Option("--tensorrt", help="auto, tensorrt or tensorrt_rtx.")] = "auto",
    compute_capability: Annotated[
        str | None,
        typer.Option("--compute-capability", help="Compile for 8.6, say, without that GPU (tensorrt_rtx only)."),
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option("--optimization-level", min=0, max=5, help="TensorRT's; lower builds faster.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build every engine again.")] = False,
    ignore_memory: Annotated[
        bool, typer.Option("--ignore-memory", help="Try even if the memory forecast does not fit.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """On the device: compile the graphs into TensorRT engines; what is built and still right is kept."""
    with open_results() as results:
        from linmu.tools.build import build

        with progress_bar("building") as progress:
            report = build(
                bundle,
                max_tokens=max_tokens,
                flavour=tensorrt,
                capability=compute_capability,
                optimization_level=optimization_level,
                force=force,
                ignore_memory=ignore_memory,
                say=say,
                progress=progress,
            )
        results.report(report, json_output)
