"""The shipped demo: a small student that commands take where none is named."""

from __future__ import annotations

from pathlib import Path


def student_folder() -> Path:
    """The demo's student: a SmolVLM of 4 million parameters with M-MATE blocks."""
    return Path(__file__).parent / "student"
