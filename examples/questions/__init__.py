"""The demo's questions: a seeded generator of pictures, clips and what is asked of them, and who learnt them first."""

from __future__ import annotations

from pathlib import Path


def teacher_folder() -> Path:
    """The model that the demo's student was distilled from."""
    return Path(__file__).parents[1] / "demo_teacher"
