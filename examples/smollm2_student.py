"""Distill SmolLM2-135M into its linear form on real text, and measure what the tokens buy.

    apt-get download debian-handbook python3.11-doc perl-doc git-doc developers-reference
    python examples/smollm2_student.py out/smollm2-student *.deb --bf16 [--scale 1.0]

Texts are contexts of 512 tokens from Debian's documentation; a twentieth of the pages is held out. Validation gives the
KL per token and the share of equal likeliest tokens every few steps, with the text window and without; at the end, and
for the student as converted, distances by position and greedy continuations. Every product is kept; a second run goes
on. `--scale` multiplies all steps. The last line is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from agreement import distance, greedy_agreement, token_rows
from pretrained import load_smollm2
from real_text import contexts, pages, write_texts
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from linmu.config import MMateConfig
from linmu.conversion.folder import convert_folder
from linmu.distill.recipe import Recipe, load_recipe, parse_settings
from linmu.distill.run import distill
from linmu.model.folders import load_student

RECIPE = Path(__file__).with_name("smollm2_student.yaml")
CONTEXT_TOKENS = 512


def say(text: str) -> None:
    """A line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def prepare(out: Path, packages: list[Path], texts: int, held_out: int) -> tuple[Path, Path, Path]:
    """Folders of the teacher, the training texts and the held-out texts, made where they are missing."""
    folders = out / "teacher", out / "texts", out / "held-out"
    if not folders[0].exists():
        teacher, tokenizer = load_smollm2()
        teacher.save_pretrained(folders[0])
        tokenizer.save_pretrained(folders[0])
    if not all(folder.exists() for folder in folders[1:]):
        tokenizer, source = AutoTokenizer.from_pretrained(folders[0]), pages(packages)
        for folder, count, held in ((folders[1], texts, False), (folders[2], held_out, True)):
            if not folder.exists():
                say(f"{folder}: {write_texts(folder, contexts(source, tokenizer, CONTEXT_TOKENS, held)[:count])} texts")
    return folders


def curve(student: Path, recipe: Recipe) -> list[dict[str, float | str]]:
    """Every validation of every stage, with the training tokens seen so far."""
    found: list[dict[str, float | str]] = []
    before = 0.0
    for number, stage in enumerate(recipe.stages, 1):
        folder = student / "training" / f"{number}-{stage.name}"
        tokens = {row["step"]: float(row["tokens"]) for row in csv.DictReader((folder / "training.csv").open())}
        for row in csv.DictReader((folder / "validation.csv").open()):
            names = [name for name in ("kl", "top1", "kl_off", "top1_off") if row.get(name)]
            values = {name: float(row[name]) for name in names}
            found.append({"stage": stage.name, "tokens": before + (tokens.get(row["step"]) or 0.0), **values})
        before += max(tokens.values())
    return found


def measured(teacher: PreTrainedModel, folder: Path, rows: torch.Tensor) -> dict[str, dict[str, float]]:
    """Distances and greedy agreement of the student in `folder` on held-out contexts [N, S]."""
    student = load_student(folder)
    result = {"window": distance(teacher, student, rows), "greedy": greedy_agreement(teacher, student, rows)}
    if student.mmate.text_window:
        result["without"] = distance(teacher, student, rows, window=False)
    return result


def main() -> None:
    """Make what is missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("packages", type=Path, nargs="*", help="Debian packages with documentation")
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--text-window", type=int, default=64)
    parser.add_argument("--text-sinks", type=int, default=4)
    parser.add_argument("--projections", default="shared", help="of the text window: shared or own")
    parser.add_argument("--name", default="student", help="folder of the result, below OUT")
    parser.add_argument("--set", action="append", metavar="NAME=VALUE", help="a key of the recipe; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    teacher, texts, held_out = prepare(args.out, args.packages, args.texts, args.held_out)
    converted, student = args.out / f"{args.name}-converted", args.out / args.name
    if not converted.exists():
        mmate = MMateConfig(
            text_window=args.text_window, text_sinks=args.text_sinks, text_window_projections=args.projections
        )
        convert_folder(teacher, converted, mmate=mmate)
    recipe = load_recipe(RECIPE, parse_settings(args.set or []))
    recipe = replace(recipe, stages=tuple(replace(s, steps=max(1, round(s.steps * args.scale))) for s in recipe.stages))
    report = distill(
        converted,
        teacher,
        texts,
        student,
        recipe=recipe,
        resume=student.exists(),
        seed=args.seed,
        bf16=args.bf16,
        validation=held_out,
    )
    lines = (held_out / "data.jsonl").read_text(encoding="utf-8").splitlines()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(teacher).eval(), AutoTokenizer.from_pretrained(teacher)
    rows = token_rows(tokenizer, [json.loads(line)["prompt"] for line in lines], CONTEXT_TOKENS)
    say("\n".join(str(row) for row in curve(student, recipe)))
    results = {"converted": measured(model, converted, rows), "distilled": measured(model, student, rows)}
    print(json.dumps({"seconds": round(report.seconds), "curve": curve(student, recipe), **results}))


if __name__ == "__main__":
    main()
