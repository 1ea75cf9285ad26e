"""Reading the header of a safetensors file with every length and offset checked before a tensor is touched.

Format: 8 bytes little-endian header length n, n bytes of JSON {name: {dtype, shape, data_offsets}}, then the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from linmu.errors import InputError
from linmu.files.regular import regular_file
from linmu.files.strict_json import parse_json

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself

DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the header: safetensors dtype name, shape, and its first and last+1 byte in the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header: tensors by name, string metadata, and the byte at which the data begins."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(prod(entry.shape) for entry in self.tensors.values())

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.end - entry.start for entry in self.tensors.values())


def read_header(path: Path) -> Header:
    """Read and check the header of `path`; raises InputError naming the file when it is damaged or something else."""
    try:
        size = regular_file(path, "the file").stat().st_size
        with path.open("rb") as file:
            raw = _header_bytes(path, file, size)
    except OSError as error:
        raise InputError(f"cannot read {path}", got=error.strerror) from error
    return parse_header(raw, size - 8 - len(raw), str(path))


def parse_header(raw: bytes, data_bytes: int, name: str) -> Header:
    """Check the JSON header `raw` of a file with `data_bytes` bytes of data; raises InputError naming `name`."""
    try:
        content = parse_json(bytes(raw), name)
    except InputError as error:
        raise _damaged(name, "a header that is not JSON") from error
    if not isinstance(content, dict):
        raise _damaged(name, "a header that is not a JSON object")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(name, "metadata that are not strings")
    tensors = {key: _entry(name, key, value) for key, value in content.items()}
    _check_coverage(name, tensors, data_bytes)
    return Header(tensors, metadata, 8 + len(raw))


def steady_header(raw: bytes) -> bytes:
    """A JSON header with its metadata sorted, as many bytes as before: safetensors writes them in a random order."""
    header = json.loads(raw)
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > len(raw):
        raise ValueError(f"a header grew from {len(raw)} to {len(text)} bytes")
    return text.ljust(len(raw))


def steady_bytes(content: bytes) -> bytes:
    """A whole safetensors file with such a header: equal tensors and metadata make equal bytes."""
    end = 8 + int.from_bytes(content[:8], "little")
    return content[:8] + steady_header(content[8:end]) + content[end:]


def _header_bytes(path: Path, file: BinaryIO, size: int) -> bytes:
    length_bytes = file.read(8)
    if len(length_bytes) < 8:
        raise _damaged(str(path), f"{size} bytes")
    length = int.from_bytes(length_bytes, "little")
    if length > MAX_HEADER_BYTES or file.read(1) != b"{":
        raise _damaged(str(path), "other content (a Git LFS pointer or another format?)")
    if 8 + length > size:
        raise _damaged(str(path), f"a header of {length} bytes in a file of {size} bytes (truncated)")
    return b"{" + file.read(length - 1)


def _entry(name: str, key: str, value: Any) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(name, f"no dtype, shape and data_offsets for tensor {key!r}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _damaged(name, f"unknown dtype {dtype!r} of tensor {key!r}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise _damaged(name, f"a bad shape or offsets of tensor {key!r}")
    if (offsets[1] - offsets[0]) * 8 != prod(shape) * DTYPE_BITS[dtype]:
        raise _damaged(name, f"{offsets[1] - offsets[0]} bytes for tensor {key!r} of shape {shape} and dtype {dtype}")
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_coverage(name: str, tensors: Mapping[str, TensorEntry], data_bytes: int) -> None:
    position = 0
    for key, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            raise _damaged(name, f"tensor {key!r} at byte {entry.start} instead of {position}")
        position = entry.end
    if position != data_bytes:
        kind = "truncated" if position > data_bytes else "surplus bytes"
        raise _damaged(name, f"{data_bytes} bytes of data where the header says {position} ({kind})")


def _damaged(name: str, got: str) -> InputError:
    return InputError(f"{name} is not a whole safetensors file", got=got, fix="copy or download the file again")
