"""The shipped demo: a seeded generator of visual questions, and a small teacher and its student trained on them."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def student_folder() -> Path:
    """The demo's student: a SmolVLM of 4 million parameters with M-MATE blocks."""
    return _HERE / "student"


def teacher_folder() -> Path:
    """The model that the demo's student was distilled from."""
    return _HERE / "teacher"
