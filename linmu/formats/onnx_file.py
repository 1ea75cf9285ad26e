"""An ONNX graph file as plain Python values, without the onnx package: what linmu.formats.graph_check looks at.

Anything that linmu never writes (functions, sparse tensors, strings, training) is a ValueError here already. Field
numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from linmu.formats.protobuf import fields, grouped, integers, signed

MODEL = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 14))  # not 20 (training), 25 (functions), 26 (devices)
GRAPH = frozenset((1, 2, 5, 10, 11, 12, 13, 16))  # not 14 (quantization), 15 (sparse initializers)
NODE = frozenset((1, 2, 3, 4, 5, 6, 7, 9))  # not 8 (overloads of functions)
ATTRIBUTE = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 13, 20))  # not strings, lists of tensors or graphs, types, references
VALUE = frozenset((1, 2, 3, 4))
TENSOR = frozenset((1, 2, 4, 5, 7, 8, 9, 12, 13, 14, 16))  # not segments, strings, doubles

BITS = {1: 32, 2: 8, 3: 8, 6: 32, 7: 64, 9: 8, 10: 16, 16: 16, 17: 8, 21: 4, 22: 4}  # by TensorProto.DataType
FLOATS, INTEGERS = (1, 10, 16), {2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64}
EXTERNAL = 1  # TensorProto.data_location
MOST_DEPTH = 2  # of branches inside branches
DIMENSIONS, MOST_DIMENSION = 8, 1 << 40


@dataclass(frozen=True)
class Tensor:
    """One constant: element type, sizes, bytes of its values, and where they lie (`location` None: in the file)."""

    name: str
    element: int
    dims: tuple[int, ...]
    nbytes: int
    values: np.ndarray | None = None  # of integers in the file
    location: str | None = None
    offset: int = 0

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        size = 1
        for dim in self.dims:
            size *= dim
        return size


@dataclass
class Node:
    """One node: the attributes that hold whole numbers, tensors and branches, by name."""

    domain: str
    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: dict[str, list[int]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    branches: dict[str, Graph] = field(default_factory=dict)


@dataclass
class Graph:
    """Nodes and constants of a graph or branch, and the names of its inputs."""

    nodes: list[Node]
    constants: dict[str, Tensor]
    inputs: frozenset[str]

    def data_bytes(self) -> dict[str, int]:
        """Bytes that it reads of each data file; what several constants share counts once."""
        ranges = {(tensor.location, tensor.offset, tensor.nbytes) for tensor in self._tensors() if tensor.nbytes}
        data = dict[str, int]()
        for location, _, nbytes in ranges:
            if location is not None:
                data[location] = data.get(location, 0) + nbytes
        return dict(sorted(data.items()))

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.constants.values()
        for node in self.nodes:
            yield from node.tensors.values()
            for branch in node.branches.values():
                yield from branch._tensors()


def read_graph(content: bytes) -> tuple[Graph, dict[str, int]]:
    """(graph, version by operator domain) of an ONNX file; raises ValueError for anything else."""
    model = grouped(memoryview(content), MODEL)
    graphs = [value for value in model.get(7, []) if isinstance(value, memoryview)]
    if len(graphs) != 1:
        raise ValueError(f"{len(graphs)} graphs")
    domains = dict[str, int]()
    for value in model.get(8, []):
        entry = grouped(_message(value), frozenset((1, 2)))
        domains[_text(entry, 1)] = _number(entry, 2)
    return _graph(graphs[0], 0), domains


def _graph(message: memoryview, depth: int) -> Graph:
    if depth > MOST_DEPTH:
        raise ValueError(f"branches more than {MOST_DEPTH} deep")
    by_number = grouped(message, GRAPH)
    constants = dict[str, Tensor]()
    for value in by_number.get(5, []):
        tensor = _tensor(_message(value))
        if tensor.name in constants:
            raise ValueError(f"two constants {tensor.name!r}")
        constants[tensor.name] = tensor
    inputs = frozenset(_text(grouped(_message(value), VALUE), 1) for value in by_number.get(11, []))
    return Graph([_node(_message(value), depth) for value in by_number.get(1, [])], constants, inputs)


def _node(message: memoryview, depth: int) -> Node:
    by_number = grouped(message, NODE)
    names = [tuple(str(_message(value), "utf-8") for value in by_number.get(number, [])) for number in (1, 2)]
    node = Node(_text(by_number, 7), _text(by_number, 4), _text(by_number, 3), names[0], names[1])
    for value in by_number.get(5, []):
        attribute = grouped(_message(value), ATTRIBUTE)
        name = _text(attribute, 1)
        node.numbers[name] = integers([*attribute.get(3, []), *attribute.get(8, [])])
        for tensor in attribute.get(5, []):
            node.tensors[name] = _tensor(_message(tensor))
        for branch in attribute.get(6, []):
            if name in node.branches:
                raise ValueError(f"two branches {name!r} of {node.name!r}")
            node.branches[name] = _graph(_message(branch), depth + 1)
    return node


def _tensor(message: memoryview) -> Tensor:
    by_number = grouped(message, TENSOR)
    name, element, dims = _text(by_number, 8), _number(by_number, 2), tuple(integers(by_number.get(1, [])))
    if element not in BITS:
        raise ValueError(f"element type {element} of {name!r}")
    if len(dims) > DIMENSIONS or any(not 0 <= dim < MOST_DIMENSION for dim in dims):
        raise ValueError(f"sizes {list(dims)} of {name!r}")
    tensor = Tensor(name, element, dims, 0)
    nbytes = -(-tensor.elements * BITS[element] // 8)
    if _number(by_number, 14) == EXTERNAL:
        location, offset, length = _external(by_number.get(13, []))
        if length != nbytes or any(by_number.get(number) for number in (4, 5, 7, 9)):
            raise ValueError(f"{length} bytes of {name!r}, whose sizes {list(dims)} need {nbytes}")
        return Tensor(name, element, dims, nbytes, None, location, offset)
    if by_number.get(13):
        raise ValueError(f"{name!r} has values inside and outside")
    return Tensor(name, element, dims, nbytes, _values(by_number, name, element, tensor.elements, nbytes))


def _values(by_number: dict[int, list[memoryview | int]], name: str, element: int, count: int, nbytes: int):
    """The integers of a tensor in the file (None: no integers), once it holds as many values as its sizes say."""
    raw = [_message(value) for value in by_number.get(9, [])]
    whole = integers([*by_number.get(5, []), *by_number.get(7, [])])  # also bits of halves
    floats = sum(len(_message(value)) for value in by_number.get(4, []))
    held = sum(map(len, raw)) if raw else floats or (len(whole) * nbytes // max(count, 1) if whole else 0)
    if held != nbytes or (whole and len(whole) not in (count, nbytes)):
        raise ValueError(f"{held} bytes of {name!r}, whose sizes need {nbytes}")
    if element not in INTEGERS:
        return None
    return np.frombuffer(b"".join(raw), INTEGERS[element]).astype(object) if raw else np.array(whole, object)


def _external(entries: list[memoryview | int]) -> tuple[str, int, int]:
    """(file, offset, length) of values outside."""
    pairs = dict[str, str]()
    for entry in entries:
        both = {number: str(text, "utf-8") for number, text in fields(_message(entry)) if isinstance(text, memoryview)}
        pairs[both.get(1, "")] = both.get(2, "")
    if set(pairs) - {"location", "offset", "length", "checksum"} or not {"location", "length"} <= set(pairs):
        raise ValueError(f"a place of values with {sorted(pairs)}")
    numbers = [pairs.get("offset", "0"), pairs["length"]]
    if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in numbers):
        raise ValueError(f"a place of values at {numbers}")
    return pairs["location"], int(numbers[0]), int(numbers[1])


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _text(by_number: dict[int, list[memoryview | int]], number: int) -> str:
    """A string field: the last one counts, as in every reader."""
    return str(_message(by_number[number][-1]), "utf-8") if number in by_number else ""


def _number(by_number: dict[int, list[memoryview | int]], number: int) -> int:
    value = by_number[number][-1] if number in by_number else 0
    if not isinstance(value, int):
        raise ValueError("bytes where a number belongs")
    return signed(value)
