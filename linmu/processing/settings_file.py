"""`processor.json`, read with every check and written."""

from __future__ import annotations

import json
from pathlib import Path

from linmu.errors import BundleError
from linmu.files import strict_json
from linmu.processing.settings import FORMAT_VERSION, ProcessorSettings, from_json, to_json
from linmu.processing.settings_check import check_settings


def read_settings(path: Path) -> ProcessorSettings:
    """Read `processor.json`; raises BundleError on an unknown version or key, a bad value or an unreadable file."""
    settings = from_json(ProcessorSettings, strict_json.read_json(path, path.name, BundleError), "top level")
    if settings.format_version != FORMAT_VERSION:
        raise BundleError(
            f"format_version in {path}", got=settings.format_version, expected=FORMAT_VERSION, fix="update linmu"
        )
    check_settings(settings)
    return settings


def write_settings(settings: ProcessorSettings, path: Path) -> None:
    """Write `processor.json`."""
    path.write_text(json.dumps(to_json(settings), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
