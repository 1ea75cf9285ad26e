"""`linmu distill`: a student trained to answer like its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linmu.commands.options import JsonOption
from linmu.commands.output import open_results, require_modules, say, show_view
from linmu.files.separate import require_separate

EXAMPLES = (
    "Example: linmu distill student --teacher teacher --data train -o trained --validation held-out, or linmu distill "
    "student --teacher teacher --data prompts -o trained --answers greedy"
)


def command(
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
    answers: Annotated[
        str, typer.Option("--answers", help="Answers that the data leaves out: data (none may be), greedy or sampled.")
    ] = "data",
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", help="Most tokens of such an answer.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Order of samples and new weights.")] = 0,
    bf16: Annotated[
        bool | None, typer.Option("--bf16/--fp32", help="Mixed precision (default: where an accelerator has it).")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Train a student to answer like its teacher, in stages; --resume goes on after a kill."""
    require_separate(out, student, teacher, data)  # reported before torch takes its seconds to load
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
            answers=answers,
            answer_tokens=answer_tokens,
            say=say,
        )
        if is_main_process():
            show_view(distill_view(report))
            say(f"student written to {out}")
            if json_output:
                results.json({"student": str(out), "report": report})
