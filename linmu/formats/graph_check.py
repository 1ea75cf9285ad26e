"""What a graph file may hold, looked at before a runtime opens it: what linmu's exporters write, and nothing else.

A runtime computes constants while it opens a graph, and trusts sizes. So a stranger's graph could make it divide by
zero (the process dies), loop for ever, reserve any amount of memory or read other files. Refused here:
operators, domains, attributes and element types outside the lists below; branches but those of If; values outside the
bundle's own data files; constants that would be computed but for those that only change type or shape; whole-number
divisors that are not positive constants; constant sizes that the bundle does not hold.
What remains: sizes that follow from inputs can still be large (docs/security.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

from linmu.errors import BundleError
from linmu.files.regular import regular_file
from linmu.formats.manifest import Manifest
from linmu.formats.manifest_facts import room
from linmu.formats.manifest_object import MANIFEST_NAME
from linmu.formats.onnx_file import FLOATS, Graph, Node, Tensor, read_graph
from linmu.specs import GraphSpec

MICROSOFT = "com.microsoft"
OPERATORS: dict[str, frozenset[str]] = {
    "": frozenset(
        "Add And Attention Cast Clip Concat ConstantOfShape Conv Cos CumSum DequantizeLinear Div Equal Erf Exp Expand "
        "Floor Gather Gelu Gemm Greater GreaterOrEqual Identity If LayerNormalization Less LessOrEqual Log MatMul Max "
        "Min Mul Neg Not Or Pad Pow QuantizeLinear Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum "
        "Reshape Round Shape Sigmoid SimplifiedLayerNormalization Sin Slice Softmax Softplus Split Sqrt Squeeze Sub "
        "Tanh TensorScatter Transpose Unsqueeze Where".split()
    ),
    MICROSOFT: frozenset(
        "BranchwiseRMSNorm CausalConvWithState FusedMatMul LinearAttention LinearAttentionGate MatMulNBits "
        "MultiHeadAttention QuickGelu RotaryEmbedding SkipSimplifiedLayerNormalization".split()
    ),
}
# Computed from constants while a graph is opened; none of them makes anything larger than it is.
FOLDED = frozenset(("Cast", "DequantizeLinear", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
SIZES = {"ConstantOfShape": (0,), "Expand": (1,), "Range": (0, 1, 2), "Pad": (1,), "Concat": None}  # None: every input
BRANCHES = frozenset(("then_branch", "else_branch"))
WINDOW = ("kernel_shape", "pads", "dilations", "strides")  # of Conv
LARGEST_NUMBER, LARGEST_WINDOW = 1 << 24, 1 << 12
LARGEST_DIGIT = 1 << 30  # what positions are divided by and digits multiplied with (linmu.step.exact_angles)
SLICE_ENDS = frozenset((2**63 - 1, -(2**63), -(2**63) + 1, 2**31 - 1, -(2**31), -(2**31) + 1))  # "to the end"
MOST_NODES = 200_000

Places = Mapping[str, tuple[int, int]]  # weight -> byte offset and length in the data file of decoder.json


def check_graph_file(folder: Path, name: str, manifest: Manifest, weights: Places | None = None) -> None:
    """Look at graph file `name` of a bundle; raises BundleError that says what no exporter would have written.

    weights: where the decoder's weights lie; constants of their names must lie there.
    """
    path = regular_file(folder / name, "a graph of the bundle")
    try:
        graph, domains = read_graph(path.read_bytes())
        if unknown := sorted(set(domains) - set(OPERATORS)):
            raise ValueError(f"operators of {unknown[0]!r}")
        _Check(name, manifest, weights or {}).graph(graph, {}, {})
        _check_data(name, graph, manifest)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{path} holds what linmu does not write", got=error, fix="export the bundle again with this version"
        ) from error


def check_graph_files(folder: Path, manifest: Manifest) -> None:
    """`check_graph_file` of every ONNX graph of a bundle that is being written."""
    for graph in manifest.graphs.values():
        if graph.file.endswith(".onnx"):
            check_graph_file(folder, graph.file, manifest)


def graph_weights(folder: Path, graphs: Mapping[str, GraphSpec]) -> dict[str, dict[str, int]]:
    """What the manifest says of graphs that a device compiles: bytes that each reads of each data file."""
    return {
        name: _data_bytes(spec.file, read_graph((folder / spec.file).read_bytes())[0]) for name, spec in graphs.items()
    }


def _data_bytes(name: str, graph: Graph) -> dict[str, int]:
    """By the data file's path in the bundle; graph file `name` refers to files beside it."""
    return {_beside(name, location): nbytes for location, nbytes in graph.data_bytes().items()}


def _beside(name: str, location: str) -> str:
    return f"{name.rpartition('/')[0]}/{location}".lstrip("/")


def _check_data(name: str, graph: Graph, manifest: Manifest) -> None:
    """Engines are kept by the hashes of the data files that the manifest names: it must name those that are read."""
    read = _data_bytes(name, graph)
    for key, spec in manifest.graphs.items():
        stated = manifest.graph_weights.get(key, read)
        if spec.file == name and stated != read:
            raise ValueError(f"weights {read}, where {MANIFEST_NAME} says {stated}")


class _Check:
    """One file's check; every method raises ValueError."""

    def __init__(self, name: str, manifest: Manifest, weights: Places):
        self.files, self.weights, self.room = manifest.files, weights, room(manifest)
        self.empty = {spec.name for spec in manifest.state if 0 in spec.shape}
        self.name = name
        self.nodes = 0

    def graph(self, graph: Graph, constants: Mapping[str, Tensor | None], operators: Mapping[str, str]) -> None:
        """A graph, or a branch that also sees another one's `constants` (None: computed from constants) and values.

        operators: by the value that each makes, "" for inputs.
        """
        if shadowed := graph.constants.keys() & (constants.keys() | operators.keys()):
            raise ValueError(f"two values {sorted(shadowed)[0]!r}")
        for tensor in graph.constants.values():
            self.tensor(tensor)
        constants = dict(constants) | graph.constants
        operators = dict(operators) | dict.fromkeys(graph.inputs - constants.keys(), "")
        self.nodes += len(graph.nodes)
        if self.nodes > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES} nodes")
        for node in graph.nodes:
            if unknown := [name for name in node.inputs if name and name not in constants and name not in operators]:
                raise ValueError(f"{unknown[0]!r} before it is made")
            self.node(node)
            inputs = [constants.get(name) for name in node.inputs]
            self.sizes(node, inputs)
            if node.operator == "Div":
                self.divisor(node, inputs, operators)
            if node.operator == "Attention":
                self.attention(node, operators)
            if node.operator == "TensorScatter":
                self.written(node, operators)
            for branch in node.branches.values():
                self.graph(branch, constants, operators)
            outputs = [name for name in node.outputs if name]
            if doubled := [name for name in outputs if name in constants or name in operators]:
                raise ValueError(f"two values {doubled[0]!r}")
            if not node.branches and all(name in constants for name in node.inputs if name):
                self.folded(node, inputs[0] if inputs else None)
                constants.update(dict.fromkeys(outputs))
            else:
                operators.update(dict.fromkeys(outputs, node.operator))

    def node(self, node: Node) -> None:
        """Operator and attributes."""
        if node.operator not in OPERATORS.get(node.domain, frozenset()):
            raise ValueError(f"operator {node.domain or 'ai.onnx'}.{node.operator}")
        if node.branches and (node.operator != "If" or set(node.branches) != BRANCHES):
            raise ValueError(f"branches {sorted(node.branches)} of {node.operator}")
        for name, numbers in node.numbers.items():
            most = LARGEST_WINDOW if name in WINDOW else LARGEST_NUMBER
            at_end = node.operator == "Shape"  # start and end may say "to the end"
            if any(abs(number) > most and not (at_end and number in SLICE_ENDS) for number in numbers):
                raise ValueError(f"{name} {numbers[:8]} of {node.operator}")
        for tensor in node.tensors.values():
            self.tensor(tensor)

    def tensor(self, tensor: Tensor) -> None:
        """A constant's place and size."""
        if tensor.location is None:
            return
        name = _beside(self.name, tensor.location)
        entry = self.files.get(name)
        if entry is None or name.endswith(".onnx"):
            raise ValueError(f"values of {tensor.name!r} in {tensor.location!r}, which is no data file of the bundle")
        if tensor.offset + tensor.nbytes > entry.bytes:
            raise ValueError(f"values of {tensor.name!r} behind the end of {tensor.location!r}")
        if self.weights.get(tensor.name, (tensor.offset, tensor.nbytes)) != (tensor.offset, tensor.nbytes):
            raise ValueError(f"{tensor.name!r} at byte {tensor.offset}, elsewhere than in decoder.json")

    def folded(self, node: Node, first: Tensor | None) -> None:
        """A node of constants alone is computed while the graph is opened."""
        shape = node.operator == "ConstantOfShape" and first is not None and first.values is not None
        if not shape and node.operator not in FOLDED:
            raise ValueError(f"{node.operator} {node.name!r} of constants alone")

    def sizes(self, node: Node, inputs: list[Tensor | None]) -> None:
        """Whole-number constants: none that large, and no size that the bundle does not hold."""
        for place, tensor in enumerate(inputs):
            if tensor is None or tensor.values is None or not tensor.values.size:
                continue
            at_end = node.operator == "Slice" and place in (1, 2)
            largest = LARGEST_DIGIT if node.operator in ("Div", "Mul") else LARGEST_NUMBER
            if tensor.element in (6, 7) and any(
                abs(number) > largest and not (at_end and number in SLICE_ENDS) for number in tensor.values
            ):
                raise ValueError(f"{list(tensor.values[:8])} in {node.operator} {node.name!r}")
        if node.operator not in SIZES:
            return
        places = SIZES[node.operator]
        chosen = inputs if places is None else [inputs[place] for place in places if place < len(inputs)]
        whole = [x.values for x in chosen if x is not None and x.element == 7 and x.values is not None]
        values = [number for array in whole for number in array[:64]]
        product = max if node.operator == "Range" else prod
        if values and product([max(abs(number), 1) for number in values]) > self.room // 8:
            raise ValueError(f"sizes {values[:8]} in {node.operator} {node.name!r}")

    def divisor(self, node: Node, inputs: list[Tensor | None], operators: Mapping[str, str]) -> None:
        """Whole numbers are divided by positive constants only: a processor stops at 0, and at -1 for the smallest."""
        divisor = inputs[1] if len(inputs) == 2 else None
        if divisor is None and operators.get(node.inputs[1] if len(node.inputs) == 2 else "") == "Sqrt":
            return  # which there is for floats only
        if (
            divisor is None
            or divisor.element not in FLOATS
            and (divisor.values is None or not divisor.values.size or min(divisor.values) < 1)
        ):
            raise ValueError(f"a divisor that is no positive constant in {node.name!r}")

    def attention(self, node: Node, operators: Mapping[str, str]) -> None:
        """Keys and values are written states: ONNX Runtime divides by their heads, and a state has some."""
        made = [operators.get(name) for name in node.inputs[1:3]]
        if made != ["TensorScatter"] * 2 or any(node.numbers.values()):
            raise ValueError(f"keys and values of {node.name!r} that are no state")

    def written(self, node: Node, operators: Mapping[str, str]) -> None:
        """What is written into is a state: an input of the graph, of the shape that the manifest says, not empty."""
        state = node.inputs[0] if node.inputs else ""
        if operators.get(state) != "" or state in self.empty:
            raise ValueError(f"{node.name!r} writes into what is no state")
