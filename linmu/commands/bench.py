"""`linmu bench`: time and memory against context length."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linmu.commands.options import BackendOption, BundleArgument, JsonOption, ThreadsOption
from linmu.commands.output import open_results, say
from linmu.errors import InputError

EXAMPLES = "Example: linmu bench bundle --contexts 512,2048,8192 --threads 2 --json"


def command(
    bundle: BundleArgument,
    contexts: Annotated[str, typer.Option("--contexts", help="Context lengths in tokens.")] = "512,2048,8192",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also draw a picture (.png, .svg, .pdf).")] = None,
    json_output: JsonOption = False,
) -> None:
    """Measure time to first token, tokens per second, peak memory and state bytes against context length."""
    lengths = context_lengths(contexts)
    with open_results() as results:
        from linmu.tools.bench import bench as bench_bundle

        report = bench_bundle(bundle, contexts=lengths, backend=backend, threads=threads, progress=say, plot=plot)
        results.report(report, json_output)


def context_lengths(text: str) -> tuple[int, ...]:
    """Comma-separated token counts; raises InputError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError("--contexts", got=repr(text), expected="token counts, for example 512,2048")
    return tuple(int(part) for part in parts)
