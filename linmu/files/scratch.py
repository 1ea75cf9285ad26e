"""Temporary folders whose names nobody gets to see."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from linmu.errors import LinmuError


@contextmanager
def scratch_folder(shown: Path | str) -> Iterator[Path]:
    """A folder that is removed afterwards; errors of linmu raised inside name `shown` in its place."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            yield Path(temporary)
        except LinmuError as error:
            error.replace_text(temporary, str(shown))
            raise
