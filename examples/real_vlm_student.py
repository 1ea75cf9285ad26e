"""From the real teacher to the phone: convert, distill, measure, export, verify, ask; the functions under the commands.

Every part returns plain JSON values for the summary of `real_vlm.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linmu.calibration.collect import calibrate
from linmu.config import MMateConfig
from linmu.conversion.folder import convert_folder
from linmu.distill.recipe import Recipe
from linmu.distill.run import distill
from linmu.evaluation.answerers import Engine
from linmu.evaluation.report import Evaluation
from linmu.export.targets import write_bundle
from linmu.formats.bundle import Bundle
from linmu.formats.data_folder import DataFolder
from linmu.runtimes.stock_runner import stock_answer
from linmu.tools.evaluate import Plan, evaluate
from linmu.tools.verify import verify

# A picture is 8 x 8 tokens: one window; a clip is a few pictures, each its own span.
MMATE = MMateConfig(window_frames=1, window_rows=8, window_columns=8, chunk_size=64, text_window=64, text_sinks=4)
BUNDLES = {"onnx": "int4", "jetson": "int4", "android": "8da4w"}  # target -> preset
MOST_ANSWER_TOKENS = 32
STOCK_QUESTIONS = 8

Say = Callable[[str], None]


@dataclass(frozen=True)
class Folders:
    """Where the inputs and products of a run lie."""

    root: Path

    @property
    def teacher(self) -> Path:
        """The trained teacher."""
        return self.root / "teacher"

    @property
    def converted(self) -> Path:
        """The student as converted."""
        return self.root / "converted"

    @property
    def student(self) -> Path:
        """The distilled student."""
        return self.root / "student"

    @property
    def record(self) -> Path:
        """What calibration measured."""
        return self.root / "calib.safetensors"

    def bundle(self, target: str) -> Path:
        """The bundle of a target."""
        return self.root / f"bundle-{target}"

    def data(self, name: str) -> Path:
        """A data folder: train, test, distill or validation."""
        return self.root / "data" / name


def measure(model: Path, folders: Folders, teacher: bool, threads: int, limit: int | None = None) -> dict[str, Any]:
    """Accuracy of a model on the test by task, by generation; with `teacher`, the teacher's on the same questions."""
    found = evaluate(
        model,
        folders.data("test"),
        teacher=folders.teacher if teacher else None,
        plan=Plan(limit=limit, max_new_tokens=MOST_ANSWER_TOKENS),
        engine=Engine(threads=threads),
        predictions=folders.root / "said.jsonl",
    )
    return accuracies(found)


def accuracies(found: Evaluation) -> dict[str, Any]:
    """Per cent of right answers by task and "all", and the teacher's where it was asked."""
    rows = {**found.tasks, "all": found.micro}
    table: dict[str, Any] = {"model": {name: round(100 * row.accuracy.value, 1) for name, row in rows.items()}}
    if found.teacher is not None:
        asked = {name: row.teacher for name, row in rows.items() if row.teacher is not None}
        table["teacher"] = {name: round(100 * row.accuracy.value, 1) for name, row in asked.items()}
    return table


def make_student(folders: Folders) -> dict[str, Any]:
    """Convert the teacher."""
    shutil.rmtree(folders.converted, ignore_errors=True)
    report = convert_folder(folders.teacher, folders.converted, mmate=MMATE)
    return {"seconds": round(report.seconds, 1)}


def train_student(folders: Folders, recipe: Recipe, bf16: bool, say: Say) -> dict[str, Any]:
    """Distill; a run that was stopped goes on."""
    report = distill(
        folders.converted,
        folders.teacher,
        folders.data("distill"),
        folders.student,
        recipe=recipe,
        resume=folders.student.exists(),
        bf16=bf16,
        validation=folders.data("validation"),
        say=say,
    )
    return {"samples": report.samples, "seconds": round(report.seconds)}


def calibrated(folders: Folders, samples: int) -> dict[str, Any]:
    """Measure activations once for every target; an interrupted run goes on."""
    record = calibrate(
        folders.student,
        folders.record,
        data=folders.data("validation"),
        samples=samples,
        decode_tokens=8,
        long_tokens=256,
        state_tokens=1024,
    )
    return {"samples": record.done}


def exported(folders: Folders, target: str, say: Say) -> dict[str, Any]:
    """The bundle of a target with its preset."""
    folder = folders.bundle(target)
    report = write_bundle(
        folders.student,
        folder,
        target=target,
        preset=BUNDLES[target],
        calibration=folders.record,
        overwrite=folder.exists(),
        progress=lambda text, *_: say(f"{target}: {text}"),
    )
    return {"bytes": report.bundle_bytes, "student_bytes_in_float32": report.student_bytes}


def verified(folders: Folders, target: str, say: Say) -> dict[str, Any]:
    """Every check of `linmu verify`; raises SystemExit when one fails."""
    report = verify(folders.bundle(target), student=folders.student, calibration=folders.record, progress=say)
    if not report.ok:
        raise SystemExit(f"{folders.bundle(target)} does not agree with its student: linmu verify says where")
    return {"checks": len(report.checks)}


def stock_answers(folders: Folders, say: Say) -> dict[str, Any]:
    """What ExecuTorch's own runner answers to some test questions about one picture."""
    bundle = Bundle.open(folders.bundle("android"))
    samples = [sample for sample in DataFolder.open(folders.data("test")).samples if len(sample.images) == 1]
    right, shown = 0, []
    for sample in samples[:: max(1, len(samples) // STOCK_QUESTIONS)][:STOCK_QUESTIONS]:
        texts = stock_answer(bundle, sample.prompt, [str(file) for file in sample.images], MOST_ANSWER_TOKENS)
        said = "".join(texts).replace("<|im_end|>", "").strip()
        right += said == sample.answer
        shown.append({"prompt": sample.prompt, "answer": sample.answer, "said": said})
        say(f"stock runner: {sample.prompt} {said!r} (expected {sample.answer!r})")
    return {"right": right, "asked": len(shown), "answers": shown}
