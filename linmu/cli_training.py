"""Commands that read data: eval, distill, calibrate. `linmu.cli` registers them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from linmu.cli_output import open_results, progress_bar, require_modules, require_separate, say, show_view


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command("eval", epilog=EVAL_EXAMPLES)(eval_command)
    app.command("distill", epilog=DISTILL_EXAMPLES)(distill_command)
    app.command("calibrate", epilog=CALIBRATE_EXAMPLES)(calibrate_command)


EVAL_EXAMPLES = "Example: linmu eval student --data test --teacher teacher --predictions said.jsonl --json"


def eval_command(
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
    backend: Annotated[str, typer.Option("--backend", help="auto, or a backend the bundle names.")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads (default: the runtime's).")] = (
        None
    ),
    device: Annotated[str, typer.Option("--device", help="Of student and teacher folders: auto, cpu, cuda.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="Of student and teacher folders: auto, float32, ...")] = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts at once, folders only.")] = 16,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Measure accuracy by task: ask every question, score the generated text, give 95% intervals."""
    from linmu.evaluation.answerers import Engine
    from linmu.evaluation.report import evaluation_view
    from linmu.evaluation.run import Plan, evaluate

    plan = Plan(format, split, subtitles, ignore_case, limit, seed, max_new_tokens)
    engine = Engine(backend, threads, device, dtype, batch_size)
    with open_results() as results:
        with _bars() as progress:
            found = evaluate(
                model, data, teacher=teacher, plan=plan, engine=engine, predictions=predictions, progress=progress
            )
        show_view(evaluation_view(found))
        if json_output:
            results.json(found)


DISTILL_EXAMPLES = "Example: linmu distill student --teacher teacher --data train -o trained --validation held-out"


def distill_command(
    student: Annotated[Path, typer.Argument(help="Student folder made by `linmu convert`.", show_default=False)],
    teacher: Annotated[Path, typer.Option("--teacher", help="Model it was converted from.", show_default=False)],
    data: Annotated[Path, typer.Option("--data", help="Data folder to train on.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Student folder to write.", show_default=False)],
    stage: Annotated[str, typer.Option("--stage", help="all, or numbers such as 1 or 2,3.")] = "all",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --out holds.")] = False,
    recipe: Annotated[str, typer.Option("--recipe", help="small, large or a YAML file.")] = "small",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A key of the recipe; may be repeated.")
    ] = None,
    validation: Annotated[Path | None, typer.Option("--validation", help="Data folder to measure on.")] = None,
    cache: Annotated[Path | None, typer.Option("--cache", help="Folder that keeps the teacher's outputs.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Order of samples and new weights.")] = 0,
    bf16: Annotated[
        bool | None, typer.Option("--bf16/--fp32", help="Mixed precision (default: where an accelerator has it).")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Train a student to answer like its teacher, in stages; --resume goes on after a kill."""
    for source in (student, teacher, data):
        require_separate(source, out)
    require_modules("linmu distill", "convert", "torch", "transformers", "accelerate", "peft")
    with open_results() as results:
        from linmu.distill.recipe import load_recipe, parse_settings, parse_stages
        from linmu.distill.report import distill_view

        chosen = load_recipe(recipe, parse_settings(settings or []))
        numbers = parse_stages(stage)
        from linmu.distill.run import distill, is_main_process

        report = distill(
            student,
            teacher,
            data,
            out,
            recipe=chosen,
            stages=numbers,
            resume=resume,
            seed=seed,
            bf16=bf16,
            validation=validation,
            cache=cache,
            say=say,
        )
        if is_main_process():
            show_view(distill_view(report))
            say(f"student written to {out}")
            if json_output:
                results.json({"student": str(out), "report": report})


CALIBRATE_EXAMPLES = "Example: linmu calibrate student --data samples -o calib.safetensors"


def calibrate_command(
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
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Measure activations and states over real data, once, for every target and preset; an interrupted run goes on."""
    from linmu.demo import student_folder

    require_modules("linmu calibrate", "convert", "torch", "transformers")
    with open_results() as results:
        from linmu.calibration.collect import calibrate

        with progress_bar("calibrating") as progress:
            record = calibrate(
                student or student_folder(),
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


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for everyone who works, moved by progress(who, done, total); nothing where stderr is a file."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(who: str, done: int, total: int) -> None:
            if who not in tasks:
                tasks[who] = bars.add_task(who)
            bars.update(tasks[who], completed=done, total=total)

        yield show
