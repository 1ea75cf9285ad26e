"""The weights of an ONNX file without the onnx package: which data files it reads, and how many bytes.

Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from linmu.errors import BundleError
from linmu.formats.protobuf import fields

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
        for number, model_field in fields(content):
            if number == GRAPH and isinstance(model_field, memoryview):
                found |= dict.fromkeys(_graph(model_field))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as ONNX", got=error, fix="export the bundle again") from error
    data: dict[str, int] = {}
    for name, _, length in found:
        data[name] = data.get(name, 0) + length
    return GraphWeights(len(content), data)


def _graph(graph: memoryview) -> Iterator[tuple[str, int, int]]:
    for number, value in fields(graph):
        if not isinstance(value, memoryview):
            continue
        if number == INITIALIZER:
            yield from _external(value)
        elif number == NODE:
            for inner, attribute in fields(value):
                if inner == ATTRIBUTE and isinstance(attribute, memoryview):
                    yield from _attribute(attribute)


def _attribute(attribute: memoryview) -> Iterator[tuple[str, int, int]]:
    for number, value in fields(attribute):
        if number in ATTRIBUTE_TENSOR and isinstance(value, memoryview):
            yield from _external(value)
        elif number in ATTRIBUTE_GRAPH and isinstance(value, memoryview):
            yield from _graph(value)


def _external(tensor: memoryview) -> Iterator[tuple[str, int, int]]:
    """(data file, offset, length) of a tensor whose values stand outside."""
    entries: dict[str, str] = {}
    for number, value in fields(tensor):
        if number == EXTERNAL_DATA and isinstance(value, memoryview):
            pair = {inner: bytes(text).decode() for inner, text in fields(value) if isinstance(text, memoryview)}
            entries[pair.get(KEY, "")] = pair.get(VALUE, "")
    if "location" in entries:
        yield entries["location"], int(entries.get("offset", 0)), int(entries.get("length", 0))
