"""A real vision-language model from real parts, and its linear student for phones: one command, which may be stopped.

    python examples/real_vlm.py [--out out/real-vlm] [--until teacher]

DINOv2-small and SmolLM2-135M (from the packages that `make setup` installs) learn to talk about Tux Paint's stamps,
Debian's clip art, words, numbers, shapes and short clips. `apt-get download` gets both picture packages to
OUT/packages where they are missing; elsewhere put the .deb files there. Then: teacher, student, bundles, checks.

Started again, it goes on where it was stopped. OUT/times.json holds the wall time and the outcome of every part.
The pictures are GPL-2 (stamps) and public domain (clip art): ship no model trained on the stamps under another licence.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: examples/questions

from real_vlm_data import find_package, load_things, write_set  # noqa: E402
from real_vlm_student import (  # noqa: E402
    BUNDLES,
    Folders,
    calibrated,
    exported,
    make_student,
    measure,
    stock_answers,
    train_student,
    verified,
)
from real_vlm_teacher import Run, Training, make_teacher  # noqa: E402

from linmu.distill.recipe import Recipe, load_recipe  # noqa: E402
from linmu.errors import InputError, LinmuError  # noqa: E402
from linmu.files.atomic import write_bytes  # noqa: E402

OUT = Path(__file__).resolve().parents[1] / "out" / "real-vlm"
PACKAGES = ("tuxpaint-stamps-default", "openclipart-png")
RECIPE = Path(__file__).with_name("real_vlm_student.yaml")
SEEDS = {"train": 1, "distill": 2, "validation": 3, "test": 101}
BUNDLE_QUESTIONS = 200  # a bundle answers one question at a time


class Parts:
    """The parts of a run in OUT/times.json: seconds of each over all its starts, and what came out."""

    def __init__(self, file: Path):
        self.file = file
        self.entries: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}

    def __call__(self, name: str, make: Callable[[], dict[str, Any] | None]) -> None:
        """Make a part unless it is done; its time counts also when it is stopped."""
        entry = self.entries.setdefault(name, {"seconds": 0.0, "done": False})
        if entry["done"]:
            return
        say(f"== {name}")
        before, started = entry["seconds"], time.perf_counter()
        try:
            entry["outcome"] = make()
            entry["done"] = True
        finally:
            entry["seconds"] = round(before + time.perf_counter() - started, 1)
            write_bytes(self.file, (json.dumps(self.entries, indent=1) + "\n").encode())
        say(f"== {name}: {entry['seconds']:.0f} s {json.dumps(entry['outcome'])}")

    def table(self) -> str:
        """Wall time of every part."""
        rows = [f"{name:24} {entry['seconds']:9,.0f} s" for name, entry in self.entries.items()]
        total = sum(entry["seconds"] for entry in self.entries.values())
        return "\n".join([*rows, f"{'all':24} {total:9,.0f} s"])


def say(text: str) -> None:
    """A line for the person who waits, with the time."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def get_packages(folder: Path) -> None:
    """Download what is missing with apt; raises InputError where that does not work."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        if not list(folder.glob(f"{name}_*.deb")) and shutil.which("apt-get"):
            subprocess.run(["apt-get", "download", name], cwd=folder, check=False, stdout=sys.stderr)
        find_package(folder, name)


def make_data(folders: Folders, counts: dict[str, int]) -> dict[str, Any]:
    """Every data folder that is missing."""
    missing = [name for name in counts if not folders.data(name).exists()]
    things = load_things(folders.root / "packages") if missing else None
    for name in missing:
        assert things is not None
        most = 1 if name == "validation" else 2 if name == "distill" else None
        write_set(things, folders.data(name), "test" if name == "test" else "train", SEEDS[name], counts[name], most)
        say(f"{name}: {counts[name]} rounds")
    return {"rounds": counts}


def train_teacher(folders: Folders, plan: Training) -> dict[str, Any]:
    """Train, then put the weights beside the assembled folder's other files."""
    run = Run(folders.root / "assembled", folders.root / "training", plan, say)
    accuracy = run(folders.data("train"), folders.data("test"))
    run.publish(folders.teacher)
    return {"accuracy": accuracy}


def run_all(root: Path, plan: Training, counts: dict[str, int], recipe: Recipe, until: str, threads: int, bf16: bool):
    """All parts in their order, up to `until`: teacher or end."""
    folders, parts = Folders(root), Parts(root / "times.json")
    root.mkdir(parents=True, exist_ok=True)
    parts("packages", lambda: get_packages(root / "packages"))
    parts("data", lambda: make_data(folders, counts))
    parts("assemble", lambda: make_teacher(root / "assembled"))
    parts("train teacher", lambda: train_teacher(folders, plan))
    parts("eval teacher", lambda: measure(folders.teacher, folders, False, threads))
    if until == "end":
        parts("convert", lambda: make_student(folders))
        parts("distill", lambda: train_student(folders, recipe, bf16, say))
        parts("eval student", lambda: measure(folders.student, folders, True, threads))
        parts("calibrate", lambda: calibrated(folders, min(64, counts["validation"])))
        for target in BUNDLES:
            parts(f"export {target}", lambda t=target: exported(folders, t, say))
            parts(f"verify {target}", lambda t=target: verified(folders, t, say))
        some = min(BUNDLE_QUESTIONS, counts["test"])
        for target in ("onnx", "android"):
            parts(f"eval {target}", lambda t=target: measure(folders.bundle(t), folders, True, threads, some))
        parts("stock runner", lambda: stock_answers(folders, say))
    print(parts.table())
    print(json.dumps(parts.entries))


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--until", choices=("teacher", "end"), default="end")
    parser.add_argument("--pictures", type=int, default=24_000, help="rounds of training data")
    parser.add_argument("--tests", type=int, default=1_200, help="test questions")
    parser.add_argument("--steps", type=int, default=Training.steps, help="of the teacher's training")
    parser.add_argument("--align", type=int, default=Training.align, help="steps of the projector's alignment")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of the student's recipe")
    parser.add_argument("--every", type=int, default=Training.every, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--fp32", action="store_true", help="distill without bfloat16")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the time of a part that is stopped counts
    plan = Training(steps=args.steps, align=args.align, every=args.every)
    counts = {
        "train": args.pictures,
        "test": args.tests,
        "distill": max(args.pictures // 2, 32),
        "validation": max(min(240, args.pictures // 20), 16),
    }
    recipe = load_recipe(RECIPE)
    stages = tuple(replace(stage, steps=max(1, round(stage.steps * args.scale))) for stage in recipe.stages)
    try:
        if min(args.pictures, args.tests, args.steps, args.align, args.every, args.threads) < 1 or args.scale <= 0:
            raise InputError("a number among the options", got="less than 1", expected="1 or more; --scale above 0")
        torch.set_num_threads(args.threads)
        run_all(args.out, plan, counts, replace(recipe, stages=stages), args.until, args.threads, not args.fp32)
    except LinmuError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
