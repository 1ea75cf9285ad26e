"""safetensors writes a file's metadata in a random order; a bundle must have the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path

LENGTH_BYTES = 8


def steady_header(path: Path) -> None:
    """Sort the metadata in the header of a safetensors file just written, in place; tensors stay where they are."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:
            raise ValueError(f"the header of {path} grew from {length} to {len(text)} bytes")
        file.seek(LENGTH_BYTES)
        file.write(text.ljust(length))
