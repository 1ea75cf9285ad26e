"""The weights of an ONNX file without the onnx package: which data files it reads, and how many bytes.

A reader of the protobuf wire format as far as `ModelProto.graph.initializer` needs it (field numbers of onnx.proto).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from linmu.errors import BundleError

# onnx.proto: ModelProto.graph, GraphProto.node and .initializer, NodeProto.attribute, AttributeProto.t, .g, .tensors,
# .graphs; TensorProto.raw_data, .external_data, .data_location; StringStringEntryProto.key, .value
GRAPH, NODE, INITIALIZER, ATTRIBUTE = 7, 1, 5, 5
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH = (5, 10), (6, 11)
EXTERNAL_DATA, KEY, VALUE = 13, 1, 2


@dataclass(frozen=True)
class GraphWeights:
    """What a graph loads: the ONNX file's own bytes, and the bytes it reads of each data file, by name."""

    file_bytes: int
    data_bytes: dict[str, int]

    @property
    def nbytes(self) -> int:
        """All bytes."""
        return self.file_bytes + sum(self.data_bytes.values())


def graph_weights(path: Path) -> GraphWeights:
    """Read an ONNX file (not its data files); raises BundleError when it is no ONNX file."""
    try:
        content = memoryview(path.read_bytes())
        found: dict[tuple[str, int, int], None] = {}  # a weight that two nodes share counts once
        for number, model_field in _fields(content):
            if number == GRAPH and isinstance(model_field, memoryview):
                found |= dict.fromkeys(_graph(model_field))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as ONNX", got=error, fix="export the bundle again") from error
    data: dict[str, int] = {}
    for name, _, length in found:
        data[name] = data.get(name, 0) + length
    return GraphWeights(len(content), data)


def _graph(graph: memoryview) -> Iterator[tuple[str, int, int]]:
    for number, value in _fields(graph):
        if not isinstance(value, memoryview):
            continue
        if number == INITIALIZER:
            yield from _external(value)
        elif number == NODE:
            for inner, attribute in _fields(value):
                if inner == ATTRIBUTE and isinstance(attribute, memoryview):
                    yield from _attribute(attribute)


def _attribute(attribute: memoryview) -> Iterator[tuple[str, int, int]]:
    for number, value in _fields(attribute):
        if number in ATTRIBUTE_TENSOR and isinstance(value, memoryview):
            yield from _external(value)
        elif number in ATTRIBUTE_GRAPH and isinstance(value, memoryview):
            yield from _graph(value)


def _external(tensor: memoryview) -> Iterator[tuple[str, int, int]]:
    """(data file, offset, length) of a tensor whose values stand outside."""
    entries: dict[str, str] = {}
    for number, value in _fields(tensor):
        if number == EXTERNAL_DATA and isinstance(value, memoryview):
            pair = {inner: bytes(text).decode() for inner, text in _fields(value) if isinstance(text, memoryview)}
            entries[pair.get(KEY, "")] = pair.get(VALUE, "")
    if "location" in entries:
        yield entries["location"], int(entries.get("offset", 0)), int(entries.get("length", 0))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, bytes of a length-delimited field or an integer); raises ValueError on anything malformed."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == 2:
            length, place = _varint(message, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {place}")
        if number == 0 or place + length > len(message):
            raise ValueError(f"a field that ends outside at byte {place}")
        yield number, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("a number that is cut off")
        byte = message[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value, place
    raise ValueError(f"a number of more than ten bytes at byte {place}")
