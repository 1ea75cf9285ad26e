"""What each part of the method is worth: the demo student with one thing changed, everything else and the budget equal.

    python benchmarks/ablations.py TEACHER OUT [--steps 1200] [--only full,no_local_swin]

Every variant is converted from the same teacher and trained for the same number of steps on the same data; a variant
that skips a stage gives its steps to the others. Accuracy is by generation on the same test set; the difference to
`full` is paired, with its 95% interval. Finished variants and what they said are kept: a second run goes on. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: examples/questions

from examples.questions.measure import BATCH_SIZE, accuracy, make_sets, table_line  # noqa: E402
from linmu.config import MMateConfig  # noqa: E402
from linmu.conversion.folder import convert_folder  # noqa: E402
from linmu.distill.recipe import Recipe, Stage, load_recipe  # noqa: E402
from linmu.distill.run import distill  # noqa: E402
from linmu.evaluation.answerers import Engine  # noqa: E402
from linmu.evaluation.report import Evaluation  # noqa: E402
from linmu.model.folders import load_student  # noqa: E402
from linmu.model.modeling import decoder_layers  # noqa: E402
from linmu.tools.evaluate import evaluate  # noqa: E402

BASE = MMateConfig(window_frames=2, window_rows=4, window_columns=4, chunk_size=64)
RECIPE = Path(__file__).parents[1] / "examples" / "demo_student.yaml"
CLOSED = -20.0  # sigmoid(-20) = 2e-9


@dataclass(frozen=True)
class Variant:
    """One change: M-MATE settings, stages left out, and whether vision tokens may use the state-space branch."""

    mmate: dict[str, Any] = field(default_factory=dict)
    skip: int | None = None
    vision_by_windows_alone: bool = False


VARIANTS = {
    "full": Variant(),
    "no_local_swin": Variant({"local_swin": False}),
    # text keeps its scan: without it nothing that was seen would reach an answer
    "no_flex_ma_on_vision": Variant(vision_by_windows_alone=True),
    "forward_only": Variant({"backward": False}),
    "raster_scan": Variant({"scan": "raster"}),
    "skip_stage_1": Variant(skip=1),
    "skip_stage_2": Variant(skip=2),
    "skip_stage_3": Variant(skip=3),
    "text_window_16": Variant({"text_window": 16}),
    "text_window_64": Variant({"text_window": 64}),
    "no_rope_in_scan": Variant({"rope": False}),
    "span_of_one_frame": Variant({"max_span_frames": 1}),
    "span_unlimited": Variant({"max_span_frames": 4096}),
    "decay_per_kv_head": Variant({"decay": "kv_head"}),
}


def shortened(recipe: Recipe, variant: Variant, steps: int) -> Recipe:
    """The recipe's stages but the skipped one, in their proportions, `steps` in all."""
    kept = [stage for stage in recipe.stages if stage.number != variant.skip]
    total = sum(stage.steps for stage in kept)

    def fitted(stage: Stage) -> Stage:
        train = {g: r for g, r in stage.train.items() if g != "alpha" or not variant.vision_by_windows_alone}
        return replace(stage, steps=round(steps * stage.steps / total), train=train)

    return replace(recipe, stages=tuple(fitted(stage) for stage in kept), save_every=0, validate_every=0)


def close_alpha(folder: Path) -> None:
    """Let Local-Swin alone mix vision tokens: alpha is 0 there and, by its mask, 1 on text."""
    student = load_student(folder)
    for layer in decoder_layers(student):
        layer.self_attn.alpha.bias.data.fill_(CLOSED)
    student.save_pretrained(folder, save_original_format=False)


def train(name: str, teacher: Path, out: Path, data: Path, steps: int, bf16: bool) -> Path:
    """The trained student of a variant, made unless it is there."""
    variant, folder = VARIANTS[name], out / name
    student = folder / "student"
    if (student / "config.json").exists():
        return student
    if not (folder / "converted").exists():
        convert_folder(teacher, folder / "converted", mmate=replace(BASE, **variant.mmate))
        if variant.vision_by_windows_alone:
            close_alpha(folder / "converted")
    recipe = shortened(load_recipe(RECIPE), variant, steps)
    distill(folder / "converted", teacher, data, student, recipe=recipe, resume=student.exists(), bf16=bf16)
    return student


def ask(model: Path, test: Path, said: Path, full: Path | None) -> Evaluation:
    """What a model says to the test set, beside what `full` says; texts are kept in the file `said`."""
    return evaluate(model, test, teacher=full, engine=Engine(batch_size=BATCH_SIZE), predictions=said)


def difference(found: Evaluation) -> list[float]:
    """Accuracy minus that of `full`, and the ends of the paired interval."""
    assert found.micro.teacher is not None
    gap = found.micro.teacher.difference
    return [gap.value, gap.low, gap.high]


def main() -> None:
    """Train and measure every chosen variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--tests", type=int, default=1200)
    parser.add_argument("--only", default=",".join(VARIANTS), help="comma-separated")
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := sorted(set(names) - set(VARIANTS)):
        parser.error(f"unknown variants {unknown}; there are {', '.join(VARIANTS)}")
    data, _, (test,) = make_sets(args.out / "data", args.samples, args.tests, test_seeds=(101,))
    said = args.out / f"said-{test.name}.jsonl"
    table = {"teacher": accuracy([ask(args.teacher, test, said, None)])}
    print(table_line("teacher", table["teacher"]), file=sys.stderr)
    seconds, gaps, full = {}, {}, None
    for name in names:
        started = time.perf_counter()
        student = train(name, args.teacher, args.out, data, args.steps, args.bf16)
        seconds[name] = round(time.perf_counter() - started)
        full = student if name == "full" else full
        found = ask(student, test, said, full)
        table[name] = accuracy([found])
        line = table_line(name, table[name]) + f" ({seconds[name]} s)"
        if full is not None and full != student:
            gaps[name] = difference(found)
            line += " full {:+.1f} ({:+.1f} .. {:+.1f})".format(*(100 * value for value in gaps[name]))
        print(line, file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "steps": args.steps,
                "test_samples": args.tests,
                "accuracy": table,
                "difference_to_full": gaps,
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
