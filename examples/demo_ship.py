"""Copy the trained demo models into the package, with model cards made from their measured accuracy.

    python examples/demo_ship.py out/demo-teacher out/demo-student

Run it after demo_teacher.py and demo_student.py; it changes examples/demo_teacher and linmu/demo/student.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from pathlib import Path

from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: examples/questions

from examples.questions import teacher_folder  # noqa: E402
from linmu.demo import student_folder  # noqa: E402
from linmu.files.atomic import atomic_folder  # noqa: E402
from linmu.model.folders import SIDE_FILES  # noqa: E402

MOST_BYTES = 12_000_000
MODEL_FILES = ("config.json", "model.safetensors", "conversion.json", "distillation.json")
DATA = """## Data

Pictures, clips and questions come from a seeded generator, `python -m examples.questions.generate`: handwritten digits
(scikit-learn's copy of the UCI set "Optical Recognition of Handwritten Digits", CC BY 4.0), words rendered in
matplotlib's fonts, coloured shapes, two or three pictures at once, clips of 3 to 6 frames, and lists without a picture.
Test data share no handwritten digit, word, font or layout with training data. Answers are scored by exact match of the
generated text.
"""
USE = "It knows nothing outside these questions: it is there to try and to test the tools.\n\nLicence: Apache-2.0.\n"


def table(results: dict, rows: dict[str, str]) -> str:
    """Accuracy by task in per cent: a column for each of `rows`, {name in results: heading}."""
    found = results["accuracy"]
    lines = ["| task | " + " | ".join(rows.values()) + " |", "|---|" + "---:|" * len(rows)]
    lines += [
        f"| {task} | " + " | ".join(f"{100 * found[name][task]:.1f}" for name in rows) + " |"
        for task in found["teacher"]
    ]
    return "\n".join(lines) + f"\n\n{results['test_samples']:,} test samples in five sets.\n"


def teacher_card(results: dict, curve: Path) -> str:
    """The README of the teacher's folder."""
    last = list(csv.DictReader(curve.open()))[-1]
    return (
        "# The demo's teacher\n\nA SmolVLM (transformers' class) of 3.7M parameters, trained from scratch for linmu's "
        f"demo.\n\n{DATA}\n## Training\n\n`examples/demo_teacher.py`, seed 0: {int(last['step']):,} steps in bfloat16 "
        f"on two CPU cores, {float(last['seconds']) / 60:.0f} minutes (`curve.csv`: the loss, from step 3,800 on with "
        "that of the vision tokens).\nThe run that made these weights departs from the script up to that step: words "
        "had up to five letters, the questions\nwithout a picture were others, and the vision tokens had no loss of "
        "their own.\n\n## Accuracy, per cent\n\n" + table(results, {"teacher": "teacher"}) + f"\n{USE}"
    )


def student_card(results: dict, run: Path, stages: list[str]) -> str:
    """The README of the student's folder."""
    report = json.loads((run / "student" / "distillation.json").read_text())
    steps = ", ".join(f"{stage['name']} {stage['steps']:,}" for stage in report["stages"])
    more = json.loads((run / "more" / "distillation.json").read_text())
    rows = {"teacher": "teacher", "converted": "converted"} | {name: f"after {name}" for name in stages}
    return (
        "# The demo's student\n\nThe demo's teacher with M-MATE blocks in place of its self-attention, distilled with "
        f"`linmu distill`.\n\n{DATA}\n## Training\n\n`examples/demo_student.py`: {report['samples']:,} samples; steps "
        f"of each stage: {steps}; then {more['stages'][0]['steps']:,} steps on {more['samples']:,} more, most of them "
        f"words.\n{(report['seconds'] + more['seconds']) / 60:.0f} minutes on two CPU cores (`curve-*.csv`).\n\n"
        "## Accuracy, per cent\n\n" + table(results, rows | {"student": "after more (this model)"}) + f"\n{USE}"
    )


def ship(source: Path, target: Path, card: str, curves: dict[str, Path]) -> None:
    """Replace `target` by the model of `source`, its card and its curves; {name there: file}."""
    weights = source / "model.safetensors"
    with safe_open(weights, framework="np") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    if kinds != {"F16"} or weights.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{weights}: {kinds}, {weights.stat().st_size:,} bytes; expected F16, at most {MOST_BYTES:,}")
    with atomic_folder(target, overwrite=True) as folder:
        for name in (*MODEL_FILES, *SIDE_FILES):
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        for name, path in curves.items():
            shutil.copyfile(path, folder / name)
        (folder / "README.md").write_text(card)


def main() -> None:
    """Ship both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", type=Path)
    parser.add_argument("run", type=Path, help="the folder that demo_student.py wrote")
    chosen = parser.parse_args()
    results = json.loads((chosen.run / "results.json").read_text())
    curve = chosen.teacher / "curve.csv"
    ship(chosen.teacher, teacher_folder(), teacher_card(results, curve), {"curve.csv": curve})
    files = sorted(chosen.run.glob("student/training/*/training.csv"))
    files += chosen.run.glob("more/training/*/training.csv")
    names = [path.parent.name.split("-", 1)[1] for path in files]
    curves = {f"curve-{place}-{name}.csv": path for place, (name, path) in enumerate(zip(names, files, strict=True), 1)}
    card = student_card(results, chosen.run, names[:-1])
    ship(chosen.run / "more", student_folder(), card, curves)


if __name__ == "__main__":
    main()
