"""Target ios: a bundle with one ExecuTorch program (linmu.export.phone)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linmu.export.bundles.writer import ExportReport
from linmu.export.phone.bundle import write_phone_bundle

TARGET = "ios"


def write_bundle(student: Path, out: Path, **options: Any) -> ExportReport:
    """Export a student folder; options and errors are those of linmu.export.phone.bundle.write_phone_bundle."""
    return write_phone_bundle(TARGET, student, out, **options)
