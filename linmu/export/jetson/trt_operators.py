"""What TensorRT 10.3 (JetPack 6) can parse: operators, element types, opset; and the first node outside it.

Facts: docs/operators.md of github.com/onnx/onnx-tensorrt, the table of TensorRT 9.2, which docs/Changelog.md extends
for 10.0 to 10.3 (INT4 from 10.0, tensor axes of Slice from 10.3; tensor axes of Pad come with 10.4 only), and the note
that TensorRT 10.0 reads opsets 9 to 20. INT4 weights need opset 21, whose DequantizeLinear 10.0 reads all the same.
Only operators that linmu writes are listed: one that is not here needs a look at those tables first. Gelu is left out
on purpose (the tables list it for later releases only), graphs of opset 19 spell it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from linmu.errors import CheckFailed

LARGEST_OPSET, LARGEST_OPSET_INT4 = 20, 21

_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")
_NUMBERS = (*_FLOATS, "INT32", "INT64")
_ANY = (*_NUMBERS, "BOOL")
_QUANTIZED = ("INT8", "FLOAT8E4M3FN", "INT4")

# Operator -> element types of its inputs (shape, index and axis inputs are int64 and not looked at).
OPERATORS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Neg", "Mod", "Max", "Min", "Range", "Sum"), _NUMBERS),
    **dict.fromkeys(("MatMul", "Gemm", "Conv", "Softmax", "LayerNormalization"), _FLOATS),
    **dict.fromkeys(("Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Tanh", "Sigmoid", "Softplus", "Pow"), _FLOATS),
    **dict.fromkeys(("Cos", "Sin", "CumSum", "Clip", "Round"), _FLOATS),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _NUMBERS),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), _NUMBERS),
    **dict.fromkeys(("And", "Or", "Not", "Xor"), ("BOOL",)),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Concat", "Split", "Slice", "Expand", "Tile"), _ANY),
    **dict.fromkeys(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape"), _ANY),
    **dict.fromkeys(("Where", "Cast", "Constant"), _ANY),
    "Pad": _NUMBERS,
    "ConstantOfShape": ("INT64",),  # its input is the shape; the value must be float32 (CONSTANT_VALUE)
    "QuantizeLinear": (*_FLOATS, *_QUANTIZED),
    "DequantizeLinear": (*_FLOATS, *_QUANTIZED),
}
INDEX_INPUTS = {  # inputs that are shapes, indices, axes or limits
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "CumSum": (1,),
    "Pad": (1, 3),
    "ReduceMean": (1,),
    "ReduceSum": (1,),
    "ReduceMax": (1,),
    "ReduceMin": (1,),
}
CONSTANT_INPUTS = {  # inputs that must be initializers
    "CumSum": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "ReduceMean": (1,),
    "ReduceSum": (1,),
    "ReduceMax": (1,),
    "ReduceMin": (1,),
    "Slice": (3,),
}
ABSENT_INPUTS = {"Pad": (3,)}  # inputs that this release does not read yet


@dataclass(frozen=True)
class Problem:
    """A node that TensorRT 10.3 does not take: its name, operator, the module it came from, and why."""

    node: str
    operator: str
    module: str
    why: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.operator} {self.node!r} of {self.module}: {self.why}"


def module_of(node: str) -> str:
    """The module of the model that a node belongs to: nodes are named after it ("layers.3.MatMul_2")."""
    return node.rpartition(".")[0] or "the model itself"


def first_problem(path: Path) -> Problem | None:
    """The first node of an ONNX file that TensorRT 10.3 does not take, or None; weights are not read."""
    model = onnx.load(path, load_external_data=False)
    versions = {item.domain: item.version for item in model.opset_import}
    types = _element_types(model)
    most = LARGEST_OPSET_INT4 if TensorProto.INT4 in types.values() else LARGEST_OPSET
    if versions.get("", 0) > most:
        return Problem(path.name, "opset", "the file", f"opset {versions['']}, at most {most} is read")
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:
        if why := _reason(node, types, constants):
            return Problem(node.name, node.op_type, module_of(node.name), why)
    return None


def check_operators(path: Path) -> None:
    """Raise CheckFailed with the first node that TensorRT 10.3 does not take."""
    if (problem := first_problem(path)) is not None:
        raise CheckFailed(f"{path.name} holds what TensorRT 10.3 does not parse", got=problem, fix="report this model")


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """onnx.TensorProto types of all values that inference finds."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _reason(node: onnx.NodeProto, types: dict[str, int], constants: set[str]) -> str:
    """Why a node is not taken; "" when it is."""
    if node.domain:
        return f"an operator of the domain {node.domain}"
    if node.op_type not in OPERATORS:
        return "the operator is not on the list"
    indices = INDEX_INPUTS.get(node.op_type, ())
    for place, name in enumerate(node.input):
        if name and place in ABSENT_INPUTS.get(node.op_type, ()):
            return f"input {place} is not read"
        if place in CONSTANT_INPUTS.get(node.op_type, ()) and name not in constants:
            return f"input {place} is not an initializer"
        kind = TensorProto.DataType.Name(types.get(name, 0))
        if name and place not in indices and kind not in OPERATORS[node.op_type]:
            return f"input {place} is {kind}"
    if node.op_type == "ConstantOfShape" and any(item.t.data_type != TensorProto.FLOAT for item in node.attribute):
        return "its value is not float32"
    return ""
