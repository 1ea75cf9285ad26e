"""`linmu eval`: accuracy by task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linmu.commands.options import BackendOption, JsonOption, ThreadsOption
from linmu.commands.output import open_results, progress_bars, show_view

EXAMPLES = "Example: linmu eval student --data test --teacher teacher --predictions said.jsonl --json"


def command(
    model: Annotated[Path, typer.Argument(help="Bundle, student or teacher folder.", show_default=False)],
    data: Annotated[Path, typer.Option("--data", help="Data folder, or local copy of a data set.", show_default=False)],
    teacher: Annotated[Path | None, typer.Option("--teacher", help="Asked the same questions.")] = None,
    format: Annotated[str, typer.Option("--format", help="auto, linmu, mmmu, textvqa, longvideobench, videomme.")] = (
        "auto"
    ),
    split: Annotated[str | None, typer.Option("--split", help="Of a published data set (default: its usual one).")] = (
        None
    ),
    subtitles: Annotated[bool, typer.Option("--subtitles", help="Put subtitles before the question.")] = False,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", help="Exact match takes CAT for cat.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Ask so many, every task with its share.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Which ones --limit takes.")] = 0,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer (default: the format's).")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Keep every text here; a second run goes on from it.")
    ] = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    device: Annotated[str, typer.Option("--device", help="Of student and teacher folders: auto, cpu, cuda.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="Of student and teacher folders: auto, float32, ...")] = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts at once, folders only.")] = 16,
    json_output: JsonOption = False,
) -> None:
    """Measure accuracy by task: ask every question, score the generated text, give 95% intervals."""
    from linmu.evaluation.answerers import Engine
    from linmu.evaluation.report import evaluation_view
    from linmu.tools.evaluate import Plan, evaluate

    plan = Plan(format, split, subtitles, ignore_case, limit, seed, max_new_tokens)
    engine = Engine(backend, threads, device, dtype, batch_size)
    with open_results() as results:
        with progress_bars() as progress:
            evaluation = evaluate(
                model, data, teacher=teacher, plan=plan, engine=engine, predictions=predictions, progress=progress
            )
        show_view(evaluation_view(evaluation))
        if json_output:
            results.json(evaluation)
