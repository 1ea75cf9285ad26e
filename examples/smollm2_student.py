"""Distill SmolLM2-135M into its linear form on text that it wrote itself, and measure what the tokens buy.

    python examples/smollm2_student.py out/smollm2-student [--scale 1.0]

The teacher samples the data (seeded, temperature 1, from the first token on and from chat openings), so that nothing
but its own weights is needed. Held-out samples give the KL per token and the agreement of the likeliest token after
every few steps; at the end, and for the student as converted, greedy continuations of both models are compared. Every
product is kept; a second run goes on. `--scale` multiplies all steps. The last line is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from pretrained import load_smollm2
from transformers import PreTrainedModel

from linmu.conversion.folder import convert_folder
from linmu.distill.recipe import Recipe, load_recipe
from linmu.distill.run import distill
from linmu.formats.data_folder import write_data_folder
from linmu.model.folders import load_student

RECIPE = Path(__file__).with_name("smollm2_student.yaml")
OPENINGS = (
    "",
    "<|im_start|>user\n",
    "The ",
    "How ",
    "In ",
    "Once ",
    "<|im_start|>user\nWrite ",
    "A ",
    "Question: ",
    "def ",
)
SAMPLE_TOKENS = 256
PROMPT_TOKENS, GREEDY_TOKENS = 64, 32


def say(text: str) -> None:
    """A line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def write_text(folder: Path, model: PreTrainedModel, tokenizer, count: int, seed: int, bf16: bool) -> None:
    """A data folder of `count` texts of at most SAMPLE_TOKENS tokens, sampled by the model, as many of each opening."""
    torch.manual_seed(seed)
    started, texts = time.perf_counter(), []
    batch = -(-count // len(OPENINGS))
    for opening in OPENINGS:
        ids = tokenizer(tokenizer.bos_token + opening if opening[:1] != "<" else opening, return_tensors="pt").input_ids
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            made = model.generate(
                ids.expand(batch, -1),
                attention_mask=torch.ones(batch, ids.shape[1]),
                do_sample=True,
                top_k=0,
                max_new_tokens=SAMPLE_TOKENS - ids.shape[1],
                eos_token_id=-1,
            )
        texts += [tokenizer.decode(row, skip_special_tokens=False) for row in made]
        say(f"{folder.name}: {len(texts)} of {count} texts, {time.perf_counter() - started:.0f} s")
    write_data_folder(folder, (({"prompt": text, "answer": ""}, {}) for text in texts[:count]))


def greedy_agreement(teacher: PreTrainedModel, student: PreTrainedModel, tokenizer, texts: list[str]) -> dict:
    """Continuations of held-out beginnings: share of equal tokens, mean length before the first difference."""
    equal, before = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :PROMPT_TOKENS]
        options = {
            "max_new_tokens": GREEDY_TOKENS,
            "do_sample": False,
            "eos_token_id": -1,
            "attention_mask": torch.ones_like(ids),
        }
        with torch.no_grad():
            one, two = (model.generate(ids, **options)[0, ids.shape[1] :] for model in (teacher, student))
        same = one == two
        equal += float(same.float().mean())
        before += int(same.long().cumprod(0).sum())
    return {"equal_tokens": equal / len(texts), "tokens_before_first_difference": before / len(texts)}


def curve(student: Path, recipe: Recipe) -> list[dict[str, float | str]]:
    """Every validation of every stage, with the training tokens seen so far."""
    found: list[dict[str, float | str]] = []
    before = 0.0
    for i, stage in enumerate(recipe.stages, 1):
        folder = student / "training" / f"{i}-{stage.name}"
        tokens = {row["step"]: float(row["tokens"]) for row in csv.DictReader((folder / "training.csv").open())}
        for row in csv.DictReader((folder / "validation.csv").open()):
            seen = before + (tokens.get(row["step"]) or 0.0)
            found.append({"stage": stage.name, "tokens": seen, "kl": float(row["kl"]), "top1": float(row["top1"])})
        before += max(tokens.values())
    return found


def main() -> None:
    """Make what is missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--held-out", type=int, default=50)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    teacher_folder, converted, student = args.out / "teacher", args.out / "converted", args.out / "student"
    teacher, tokenizer = load_smollm2()
    if not teacher_folder.exists():
        teacher.save_pretrained(teacher_folder)
        tokenizer.save_pretrained(teacher_folder)
    for name, count, seed in (("held-out", args.held_out, 1), ("texts", args.texts, 0)):
        if not (args.out / name).exists():
            write_text(args.out / name, teacher, tokenizer, count, seed, args.bf16)
    if not converted.exists():
        convert_folder(teacher_folder, converted)
    recipe = load_recipe(RECIPE)
    recipe = replace(recipe, stages=tuple(replace(s, steps=max(1, round(s.steps * args.scale))) for s in recipe.stages))
    report = distill(
        converted,
        teacher_folder,
        args.out / "texts",
        student,
        recipe=recipe,
        resume=student.exists(),
        bf16=args.bf16,
        validation=args.out / "held-out",
    )
    lines = (args.out / "held-out" / "data.jsonl").read_text().splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    greedy = {
        name: greedy_agreement(teacher, load_student(folder), tokenizer, texts)
        for name, folder in (("converted", converted), ("distilled", student))
    }
    say("\n".join(str(row) for row in curve(student, recipe)))
    print(json.dumps({"seconds": round(report.seconds), "curve": curve(student, recipe), "greedy": greedy}))


if __name__ == "__main__":
    main()
