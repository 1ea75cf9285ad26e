"""What makes a student of SmolLM2-135M learn: rules, windows, stages and what is trained, at equal tokens of real text.

    apt-get download debian-handbook python3.11-doc perl-doc git-doc developers-reference
    python benchmarks/fidelity.py *.deb [--tokens 100000] [--cells default,paper] [--seeds 0,1] [--bf16]

Every cell changes one thing of the default. Held-out text: KL to the teacher (nats), that of the second half of the
contexts, how often the likeliest token is the same, all of it without the text window too; 32 greedy tokens after 64;
numbers planted 32 to 1,024 tokens before the question. A cell that is done is not run again, one that was stopped goes
on. Prints a table and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from harness import finish, numbers, say, table

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from agreement import token_rows  # noqa: E402
from needle import recall  # noqa: E402
from smollm2_student import CONTEXT_TOKENS, RECIPE, measured, prepare  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase  # noqa: E402

from linmu.config import converted_with  # noqa: E402
from linmu.conversion.folder import convert_folder  # noqa: E402
from linmu.distill.recipe import Recipe, load_recipe, parse_settings  # noqa: E402
from linmu.distill.run import distill  # noqa: E402
from linmu.files.atomic import write_bytes  # noqa: E402
from linmu.model.folders import load_student  # noqa: E402

OUT = Path(__file__).parents[1] / "out" / "fidelity"
LORA = {
    "answers.lora": "{rank: 32, alpha: 64, targets: [mlp]}",
    "answers.train": "{flex_new: 3e-4, flex_inherited: 1e-4, swin: 1e-4, alpha: 3e-4, output: 1e-4, lora: 5e-4}",
}
# name -> settings of the block, settings of the recipe, share of the tokens that the layer stage gets
CELLS: dict[str, tuple[dict[str, object], dict[str, str], float]] = {
    "default": ({}, {}, 1 / 3),
    "paper": ({"text_window": 0}, {}, 1 / 3),
    "window 16": ({"text_window": 16}, {}, 1 / 3),
    "window 128": ({"text_window": 128}, {}, 1 / 3),
    "no sinks": ({"text_sinks": 0}, {}, 1 / 3),
    "own projections": ({"text_window_projections": "own"}, {}, 1 / 3),
    "delta rule": ({"rule": "gated_delta"}, {}, 1 / 3),
    "no dropout": ({}, {"layers.window_dropout": "0", "answers.window_dropout": "0"}, 1 / 3),
    "layers alone": ({}, {}, 1.0),
    "answers alone": ({}, {}, 0.0),
    "lora": ({}, LORA, 1 / 3),
}
DISTANCES = (32, 128, 512, 1024)


def recipe_of(name: str, tokens: int) -> Recipe:
    """The example's recipe with a cell's changes, cut to so many tokens."""
    _, settings, share = CELLS[name]
    recipe = load_recipe(RECIPE, parse_settings([f"{key}={value}" for key, value in settings.items()]))
    steps = tokens / (recipe.batch_size * CONTEXT_TOKENS)
    counts = {"layers": round(steps * share), "answers": round(steps * (1 - share))}
    stages = tuple(replace(stage, steps=counts[stage.name]) for stage in recipe.stages if counts[stage.name])
    return replace(recipe, stages=stages, validate_every=0)


def run_cell(folders: tuple[Path, Path, Path], name: str, seed: int, args: argparse.Namespace) -> dict:
    """Convert, distill, measure; what was measured before is read."""
    teacher, texts, held_out = folders
    folder = args.out / f"{name.replace(' ', '-')}-{args.tokens}-{seed}"
    result = folder / "result.json"
    if not result.exists():
        say(f"{name}, seed {seed}")
        converted, student = folder / "converted", folder / "student"
        if not converted.exists():
            convert_folder(teacher, converted, mmate=converted_with(CELLS[name][0]))
        recipe = recipe_of(name, args.tokens)
        options = {"recipe": recipe, "resume": student.exists(), "seed": seed, "bf16": args.bf16}
        report = distill(converted, teacher, texts, student, **options)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(teacher).eval(), AutoTokenizer.from_pretrained(teacher)
        lines = _texts(held_out)
        rows = token_rows(tokenizer, lines, CONTEXT_TOKENS)
        found = measured(model, student, rows) | {"recall": _recalled(student, tokenizer, lines)}
        found |= {"converted": measured(model, converted, rows), "seconds": report.seconds}
        write_bytes(result, json.dumps(found, indent=2).encode())
    return json.loads(result.read_bytes())


def _texts(folder: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()]


def _recalled(student: Path, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> dict:
    return recall(load_student(student), tokenizer, texts, DISTANCES)


def row(name: str, seed: int, found: dict) -> dict[str, object]:
    """A cell for the reader's table."""
    window, off = found["window"], found.get("without", {})
    recalled = {f"fact {distance}": value["right"] for distance, value in found["recall"].items()}
    return {
        "cell": name,
        "seed": seed,
        "KL start": found["converted"]["window"]["kl"],
        "KL": window["kl"],
        "2nd half": window["kl_second_half"],
        "same": window["top1"],
        "KL off": off.get("kl"),
        "greedy": found["greedy"]["equal_tokens"],
        **recalled,
    }


def main() -> None:
    """Run the cells that are asked for and missing, then print all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="*")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--seeds", type=numbers, default="0")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    folders = prepare(args.out, args.packages, 4000, 16)
    results = {
        (name, seed): run_cell(folders, name, seed, args) for seed in args.seeds for name in args.cells.split(",")
    }
    say(table([row(name, seed, found) for (name, seed), found in results.items()]))
    cells = [{"cell": name, "seed": seed, **found} for (name, seed), found in results.items()]
    finish({"benchmark": "fidelity", "tokens": args.tokens, "cells": cells})


if __name__ == "__main__":
    main()
