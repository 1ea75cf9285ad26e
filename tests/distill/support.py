"""Tiny teachers, students and data folders for training, and recipes of a few steps."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from linmu.distill.batches import SampleDataset
from linmu.distill.recipe import Recipe, Stage, load_recipe
from linmu.formats.data_folder import DataFolder, write_data_folder
from linmu.formats.model_files import read_model_folder
from linmu.layout import PromptRules
from linmu.model.batch import collate
from linmu.model.folders import load_student, load_teacher
from linmu.model.modeling import teacher_config
from linmu.processing.encode import model_processor, pad_token_id
from tests.folders import student_folder
from tests.tiny import VISION_NAMES, tiny_image

SHORT = {"batch_size": "6", "log_every": "2", "save_every": "4", "validate_every": "4"}


def items(family: str, count: int, first: int = 0):
    """Samples of different lengths; every third is text alone, the others have one or two pictures."""
    for number in range(first, first + count):
        line: dict[str, Any] = {"prompt": "see " * (1 + number % 4), "answer": "yes no maybe"[: 3 + number % 5]}
        media = {}
        if family in VISION_NAMES and number % 3:
            names = [f"{number}-{i}.png" for i in range(number % 3)]
            media = {name: tiny_image(number + i, (60, 50)) for i, name in enumerate(names)}
            line["images"] = names
        yield line, media


@cache
def _known() -> dict[str, Path]:
    return {}


def places(family: str, factory) -> Path:
    """A folder with teacher/, student/, data/ (20 samples) and held/ (5), made once; `factory`: tmp_path_factory."""
    if family not in _known():
        root = factory.mktemp(f"distill-{family}")
        student_folder(family, root)
        write_data_folder(root / "data", items(family, 20))
        write_data_folder(root / "held", items(family, 5, 100))
        _known()[family] = root
    return _known()[family]


def short_recipe(steps: int = 4, **settings: Any) -> Recipe:
    """The built-in small recipe with `steps` steps in every stage."""
    stages = {f"{name}.steps": str(steps) for name in ("flex", "windows", "hidden", "answers")}
    given = {name.replace("__", "."): str(value) for name, value in settings.items()}
    return load_recipe("small", {**SHORT, **stages, **given})


def a_stage(losses: dict[str, float], train: dict[str, float] | None = None, **settings: Any) -> Stage:
    """One stage with some losses."""
    stage = Stage(3, "only", 4, train or {"flex_new": 1e-3, "flex_inherited": 1e-3}, losses)
    return replace(stage, **settings)


def pair(root: Path):
    """(student, teacher) of `places`."""
    return load_student(root / "student"), load_teacher(read_model_folder(root / "teacher")).requires_grad_(False)


def dataset(root: Path, name: str = "data", **options: Any):
    """(SampleDataset, collate function)."""
    student = load_student(root / "student")
    rules = None if student.linmu_family.text_only else PromptRules.from_config(teacher_config(student.config))
    processor = model_processor(root / "student")
    data = SampleDataset(DataFolder.open(root / name), processor, **options)
    return data, partial(collate, rules=rules, pad_id=pad_token_id(processor))


def batch_of(root: Path, numbers: list[int], name: str = "data") -> dict[str, Any]:
    """A collated batch of some samples."""
    data, together = dataset(root, name)
    return next(iter(DataLoader(data, batch_sampler=[numbers], collate_fn=together)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a student folder."""
    return load_student(folder).state_dict()
