"""Tiny students, teachers and bundles with data that suits them, made once."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from linmu.evaluation.benchmarks import read_questions
from linmu.evaluation.questions import Question
from tests.distill.samples import VIDEO, family_folder
from tests.exports import export_bundle
from tests.folders import student_folder


@cache
def _made() -> dict[str, Any]:
    return {}


def place_of(family: str, factory: pytest.TempPathFactory) -> Path:
    """A folder with student/, teacher/ and data/ (text, one picture, two or a video, a longer text)."""
    if family not in _made():
        root = factory.mktemp(f"eval-{family}")
        student_folder(family, root)
        for folder in (root / "student", root / "teacher"):
            small_videos(family, folder)
        family_folder(family, root)
        _made()[family] = root
    return _made()[family]


def bundle_of(family: str, factory: pytest.TempPathFactory) -> Path:
    """The bundle of the same student."""
    root = place_of(family, factory)
    if not (root / "bundle").exists():
        export_bundle(root / "student", root / "bundle")
    return root / "bundle"


def small_videos(family: str, folder: Path) -> None:
    """Frames as small as the tiny towers need."""
    path = folder / "processor_config.json"
    if family in VIDEO:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"video_processor": VIDEO[family]}))


def questions_of(root: Path) -> list[Question]:
    """The questions of a place's data."""
    return read_questions(root / "data", "linmu")
