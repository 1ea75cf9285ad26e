"""Reading the header of a GGUF file (versions 2 and 3): metadata, names and places of tensors, whether it is whole."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from linmu.errors import InputError

# Not gguf.GGUFReader: it makes an array object of every item (a vocabulary of 150,000: 13 seconds, 600 MB), and slices
# beyond the end of a file are empty to it, so that a false count of items fills the memory.
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_STRING, _MAX_FILE, _MAX_RANK = 1 << 28, 1 << 50, 4

# ggml type -> (elements, bytes) of a block.
_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    30: (1, 2),
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: ggml type, elements, bytes (0 for an unknown type) and its first byte in the file."""

    kind: int
    elements: int
    length: int
    start: int


@dataclass(frozen=True)
class GgufHeader:
    """Scalar and string metadata by key, keys of arrays, and the tensors by name."""

    metadata: Mapping[str, Any]
    arrays: tuple[str, ...]
    tensors: Mapping[str, GgufTensor]

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors whose type is known."""
        return sum(tensor.length for tensor in self.tensors.values())


def read_gguf(path: Path) -> GgufHeader:
    """Read and check the header of `path`; raises InputError naming the file when it is damaged or something else."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(path, file, size)
    except OSError as error:
        raise InputError(f"cannot read {path}", got=error.strerror) from error
    except (struct.error, UnicodeDecodeError, EOFError) as error:
        raise _damaged(path, "a header that ends early or makes no sense") from error


def _read(path: Path, file: BinaryIO, size: int) -> GgufHeader:
    if file.read(4) != b"GGUF":
        raise _damaged(path, "other content (a Git LFS pointer or another format?)")
    version, tensors, pairs = struct.unpack("<IQQ", file.read(20))
    if version not in (2, 3):
        raise InputError(f"{path}: GGUF version", got=version, expected="2 or 3")
    metadata, arrays = {}, []
    for _ in range(pairs):
        key = _text(file)
        value = _value(file, *struct.unpack("<I", file.read(4)))
        if value is None:
            arrays.append(key)
        else:
            metadata[key] = value
    unplaced = dict(_tensor(file) for _ in range(tensors))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise EOFError("no alignment")
    start = -(-file.tell() // alignment) * alignment
    placed = {name: replace(tensor, start=start + tensor.start) for name, tensor in unplaced.items()}
    end = max((tensor.start + tensor.length for tensor in placed.values()), default=start)
    if end > size:
        raise _damaged(path, f"{size} bytes where the header says {end} (truncated)")
    return GgufHeader(metadata, tuple(arrays), placed)


def _tensor(file: BinaryIO) -> tuple[str, GgufTensor]:
    """Name and place of the next tensor, counted from the first byte of data."""
    name = _text(file)
    (rank,) = struct.unpack("<I", file.read(4))
    if rank > _MAX_RANK:
        raise EOFError("more axes than any tensor has")
    shape = struct.unpack(f"<{rank}Q", file.read(8 * rank))
    kind, offset = struct.unpack("<IQ", file.read(12))
    block, length = _BLOCKS.get(kind, (1, 0))
    return name, GgufTensor(kind, prod(shape), prod(shape) // block * length, offset)


def _value(file: BinaryIO, kind: int) -> Any:
    """The next metadata value, or None for an array, which is skipped."""
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        item, count = struct.unpack("<IQ", file.read(12))
        if item in _SCALARS:
            _skip(file, count * struct.calcsize("<" + _SCALARS[item]))
            return None
        if item != _STRING:  # arrays of arrays are refused by llama.cpp, too
            raise EOFError(f"an array of type {item}")
        for _ in range(count):
            _skip(file, _length(file))
        return None
    if kind not in _SCALARS:
        raise EOFError(f"metadata type {kind}")
    form = "<" + _SCALARS[kind]
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _text(file: BinaryIO) -> str:
    length = _length(file)
    raw = file.read(length)
    if len(raw) < length:
        raise EOFError("end of file inside a string")
    return raw.decode("utf-8")


def _length(file: BinaryIO) -> int:
    """Bytes of the string that follows."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _MAX_STRING:
        raise EOFError("a string longer than any")
    return length


def _skip(file: BinaryIO, count: int) -> None:
    if count > _MAX_FILE:
        raise EOFError("an array longer than any file")
    file.seek(count, 1)


def _damaged(path: Path, got: str) -> InputError:
    return InputError(f"{path} is not a whole GGUF file", got=got, fix="copy or download the file again")
