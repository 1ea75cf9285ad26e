"""The identity of a student: a hash over its tensors, whatever files they lie in."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from linmu.formats.model_files import find_weights
from linmu.formats.safetensors_file import TensorEntry, read_header

PIECE = 1 << 22


def student_weights_hash(folder: Path) -> str:
    """Hexadecimal sha256 over names, dtypes, shapes and bytes of all tensors in the order of their names.

    Independent of sharding and metadata. Raises InputError when the folder has no whole safetensors files.
    """
    places: dict[str, tuple[Path, int, TensorEntry]] = {}
    for path in find_weights(Path(folder)).files:
        header = read_header(path)
        places |= {name: (path, header.data_start, entry) for name, entry in header.tensors.items()}
    digest = sha256()
    for name, (path, data_start, entry) in sorted(places.items()):
        digest.update(f"{name} {entry.dtype} {entry.shape} {entry.end - entry.start}\n".encode())
        with path.open("rb") as file:
            file.seek(data_start + entry.start)
            left = entry.end - entry.start
            while left:
                piece = file.read(min(PIECE, left))
                digest.update(piece)
                left -= len(piece)
    return digest.hexdigest()
