"""Turn the demo's teacher into its student: data, conversion, three stages, a second helping, accuracy after each.

    python examples/demo_student.py out/demo-teacher out/demo-student

Every product is kept, so that a second run goes on where the first one stopped. OUT/results.json, also the last line:
accuracy by task, by generation, of the teacher, the student as converted, and the student after every stage, over five
test sets. What is left to learn after the three stages is reading: `more` is the last stage again on new samples, most
of them words. Its student is the one that ships: it is stored in float16, like the teacher.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: examples/questions

from examples.questions.generate import TASKS, lines, samples  # noqa: E402
from examples.questions.measure import TEST_SEEDS, accuracy, ask_all, make_sets, table_line  # noqa: E402
from linmu.config import MMateConfig  # noqa: E402
from linmu.conversion.folder import convert_folder  # noqa: E402
from linmu.distill.recipe import load_recipe  # noqa: E402
from linmu.distill.run import distill  # noqa: E402
from linmu.formats.data_folder import write_data_folder  # noqa: E402

RECIPE, MORE_RECIPE = (Path(__file__).with_name(name) for name in ("demo_student.yaml", "demo_student_more.yaml"))
MORE_TASKS, MORE_SAMPLES, MORE_SEED = (*TASKS, *["word"] * 10, "number", "number"), 20000, 3
# The grid of a picture is 5 x 5 tokens: windows of 4 do not divide it, and a clip of 3 to 6 frames is one span.
MMATE = MMateConfig(window_frames=2, window_rows=4, window_columns=4, chunk_size=64)


def say(text: str) -> None:
    """A line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Make what is missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=36000)
    parser.add_argument("--tests", type=int, default=600, help="samples in each of the five test sets")
    parser.add_argument("--bf16", action="store_true")
    chosen = parser.parse_args()
    out, recipe = chosen.out, load_recipe(RECIPE)
    train, validation, tests = make_sets(out / "data", chosen.samples, chosen.tests, say=say)
    if not (out / "converted").exists():
        convert_folder(chosen.teacher, out / "converted", mmate=MMATE)
    started, student = time.perf_counter(), out / "student"
    if not (student / "config.json").exists():
        distill(
            out / "converted",
            chosen.teacher,
            train,
            student,
            recipe=recipe,
            resume=student.exists(),
            bf16=chosen.bf16,
            validation=validation,
        )
        say(f"three stages: {time.perf_counter() - started:.0f} s")
    started, more = time.perf_counter(), out / "more"
    if not (out / "data" / "more").exists():
        write_data_folder(out / "data" / "more", lines(samples("train", MORE_SEED, MORE_SAMPLES, MORE_TASKS)))
    if not (more / "config.json").exists():
        distill(
            student,
            chosen.teacher,
            out / "data" / "more",
            more,
            recipe=load_recipe(MORE_RECIPE),
            resume=more.exists(),
            bf16=chosen.bf16,
            validation=validation,
        )
        say(f"more: {time.perf_counter() - started:.0f} s")
    models = {"teacher": chosen.teacher, "converted": out / "converted"}
    for number, stage in enumerate(recipe.stages[:-1], 1):
        models[stage.name] = student / "training" / f"{number}-{stage.name}" / "student"
    models |= {recipe.stages[-1].name: student, "student": more}
    table = {}
    for name, folder in models.items():
        table[name] = accuracy(ask_all(folder, tests, out / "said" / name))
        say(table_line(name, table[name]))
    results = json.dumps({"accuracy": table, "test_samples": chosen.tests * len(TEST_SEEDS)})
    (out / "results.json").write_text(results + "\n")
    print(results)


if __name__ == "__main__":
    main()
