"""The folder a run writes: training/ while it runs, a complete student at its end.

OUT/training/run.json           what the run was started with; --resume compares it
OUT/training/1-flex/            a stage: checkpoints, training.csv, validation.csv, student/ once it is done
OUT/config.json, weights, ...   the student, config.json last: without it the folder is no student
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from linmu.distill.recipe import Recipe, Stage
from linmu.errors import InputError
from linmu.files.atomic import atomic_folder, write_bytes
from linmu.model.folders import CONVERSION_FILE, SIDE_FILES

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None

TRAINING = "training"
LOCK_FILE = ".lock"
RUN_FILE, START_FILE = "run.json", "start.json"
REPORT_FILE = "distillation.json"
_CONFIG = "config.json"


class OutFolder:
    """Paths and the finished parts of a run; `recipe` has all stages, whichever are to be run."""

    def __init__(self, root: Path, recipe: Recipe):
        self.root, self.recipe = Path(root), recipe
        self.training = self.root / TRAINING

    def begin(self, run: dict[str, Any], resume: bool) -> None:
        """Make the folder and write run.json, or compare it with the one there.

        Raises InputError for a folder in use without `resume`, and for a run that was started otherwise.
        """
        path = self.training / RUN_FILE
        if self.root.exists() and not self._empty():
            if not resume:
                raise InputError(f"{self.root} is not empty", fix="pass --resume to go on with it, or choose another")
            if not path.is_file():
                raise InputError(f"{self.root} holds no run to resume", got=f"no {TRAINING}/{RUN_FILE}")
            before = json.loads(path.read_text(encoding="utf-8"))
            # settings that a newer version added have their defaults there
            recipe = Recipe.from_json(before["recipe"], str(path)).to_json()
            _compare({"answers": "data", "answer_tokens": None, **before, "recipe": recipe}, run)
            return
        self.training.mkdir(parents=True, exist_ok=True)
        write_bytes(path, (json.dumps(run, indent=2) + "\n").encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one run; raises InputError while another one, here or on another machine, holds it.

        The system lets go of the lock when the process ends, however that happens.
        """
        if fcntl is None:  # no such locks on Windows
            yield
            return
        if not self.root.exists() or self._empty() or self.training.is_dir():
            self.training.mkdir(parents=True, exist_ok=True)
        else:
            yield  # somebody else's folder, which `begin` refuses
            return
        with (self.training / LOCK_FILE).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"another run writes {self.root}", fix="wait, or choose another folder") from error
            except OSError:  # a file system without locks
                pass
            yield

    def _empty(self) -> bool:
        """Nothing there, or no more than a run leaves that was killed before it wrote run.json."""
        if not self.root.is_dir():
            return False
        inside = [path for path in self.root.iterdir() if path != self.training]
        return not inside and not (self.training.exists() and list(self.training.glob("[!.]*")))

    def stage(self, stage: Stage) -> Path:
        """Folder of a stage."""
        return self.training / f"{self.recipe.stages.index(stage) + 1}-{stage.name}"

    def student(self, stage: Stage) -> Path:
        """Where a finished stage's student lies."""
        return self.stage(stage) / "student"

    def finished(self, stage: Stage) -> bool:
        """Whether a stage is done."""
        return (self.student(stage) / _CONFIG).is_file()

    def start_of(self, stage: Stage) -> Path | None:
        """The student of the nearest finished stage before this one; None: the student given."""
        before = self.recipe.stages[: self.recipe.stages.index(stage)]
        return next((self.student(item) for item in reversed(before) if self.finished(item)), None)

    def check_start(self, stage: Stage) -> None:
        """Note which stage this one starts from; raises InputError when it was begun from another one."""
        start = self.start_of(stage)
        name, path = "the student given" if start is None else start.parent.name, self.stage(stage) / START_FILE
        if not path.is_file():
            write_bytes(path, (json.dumps({"from": name}) + "\n").encode())
        elif (before := json.loads(path.read_text(encoding="utf-8"))["from"]) != name:
            raise InputError(
                f"stage {stage.name} was begun from {before}",
                got=f"{name}, which is finished now",
                fix=f"remove {self.stage(stage)} or choose another folder",
            )

    def save_stage(self, stage: Stage, student: PreTrainedModel, source: Path) -> None:
        """Write the student of a stage as a folder of its own, whole or not at all."""
        with atomic_folder(self.student(stage)) as folder:
            write_student(student, source, folder)

    def publish(self, student: PreTrainedModel, source: Path, report: dict[str, Any]) -> None:
        """Make the folder itself a student."""
        staged = self.training / "final"
        shutil.rmtree(staged, ignore_errors=True)
        with atomic_folder(staged) as folder:
            write_student(student, source, folder)
            text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
            (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
        (self.root / _CONFIG).unlink(missing_ok=True)
        for old in self.root.glob("*.safetensors*"):
            old.unlink()
        for path in sorted(staged.iterdir(), key=lambda path: path.name == _CONFIG):
            os.replace(path, self.root / path.name)
        staged.rmdir()


def write_student(student: PreTrainedModel, source: Path, folder: Path) -> None:
    """Weights and config of a student, with the tokenizer's, processor's and licence files of `source`."""
    for name in (*SIDE_FILES, CONVERSION_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    progress_bar = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    student.save_pretrained(folder, save_original_format=False)
    if progress_bar:
        hf_logging.enable_progress_bar()


def _compare(before: Any, now: dict[str, Any]) -> None:
    """Raise InputError that names the first setting that differs."""
    old, new = dict(_flat(before)), dict(_flat(now))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise InputError(
                f"the run was started with another {name}",
                got=new.get(name),
                expected=old.get(name),
                fix="resume it as it was started, or choose another folder",
            )


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        pairs = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        pairs = [
            (str(item["name"]) if isinstance(item, dict) and "name" in item else str(i), item)
            for i, item in enumerate(value)
        ]
    else:
        return [(name, value)]
    return [leaf for key, item in pairs for leaf in _flat(item, f"{name}.{key}" if name else key)]
