"""safetensors writes a file's metadata in a random order; a bundle must have the same bytes every time."""

from __future__ import annotations

from pathlib import Path

from linmu.formats import safetensors_file

LENGTH_BYTES = 8


def steady_header(path: Path) -> None:
    """Sort the metadata in the header of a safetensors file just written, in place; tensors stay where they are."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        text = safetensors_file.steady_header(file.read(length))
        file.seek(LENGTH_BYTES)
        file.write(text)
