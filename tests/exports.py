from __future__ import annotations

from pathlib import Path
from typing import Any

from linmu.export.targets import write_bundle
from linmu.formats.manifest import Manifest


def export_bundle(student: Path, out: Path, target: str = "onnx", **options: Any) -> Manifest:
    """Write a bundle and return its manifest."""
    return write_bundle(student, out, target=target, **options).manifest
