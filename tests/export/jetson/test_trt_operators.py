"""The list of what TensorRT 10.3 parses: each kind of excess is found and named with its module."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from linmu.errors import CheckFailed
from linmu.export.jetson.trt_operators import check_operators, first_problem, module_of

FLOAT, INT64, BOOL, DOUBLE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE


def graph(path, node, inputs, opset=19, constants=()):
    """A graph of one node behind a harmless one."""
    first = helper.make_node("Add", ["a", "a"], ["b"], name="layers.0.Add")
    values = [helper.make_tensor_value_info(name, kind, [3, 5]) for name, kind in {"a": FLOAT, **inputs}.items()]
    outputs = [helper.make_tensor_value_info("b", FLOAT, None)]
    body = helper.make_graph([first, node], "g", values, outputs, list(constants))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(helper.make_model(body, opset_imports=opsets).SerializeToString())
    return path


AXIS = helper.make_tensor("axis", INT64, [1], [1])
CASES = {
    "an operator": (helper.make_node("Det", ["x"], ["y"], name="layers.2.Det"), {"x": FLOAT}, (), "not on the list"),
    "a domain": (
        helper.make_node("Gelu", ["x"], ["y"], name="layers.2.Gelu", domain="com.microsoft"),
        {"x": FLOAT},
        (),
        "domain com.microsoft",
    ),
    "a dtype": (helper.make_node("Exp", ["x"], ["y"], name="layers.2.Exp"), {"x": DOUBLE}, (), "input 0 is DOUBLE"),
    "integers": (
        helper.make_node("CumSum", ["x", "axis"], ["y"], name="layers.2.CumSum"),
        {"x": INT64},
        (AXIS,),
        "input 0 is INT64",
    ),
    "a computed axis": (
        helper.make_node("Unsqueeze", ["x", "i"], ["y"], name="layers.2.Unsqueeze"),
        {"x": FLOAT, "i": INT64},
        (),
        "input 1 is not an initializer",
    ),
    "flags": (helper.make_node("MatMul", ["x", "x"], ["y"], name="layers.2.MatMul"), {"x": BOOL}, (), "is BOOL"),
    "axes of Pad": (
        helper.make_node("Pad", ["x", "p", "", "axis"], ["y"], name="layers.2.Pad"),
        {"x": FLOAT, "p": INT64},
        (AXIS,),
        "input 3 is not read",
    ),
    "a constant of integers": (
        helper.make_node(
            "ConstantOfShape", ["s"], ["y"], name="layers.2.Constant", value=helper.make_tensor("v", INT64, [1], [1])
        ),
        {"s": INT64},
        (),
        "not float32",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_node_and_its_module_are_named(case, tmp_path):
    node, inputs, constants, why = CASES[case]
    path = graph(tmp_path / "g.onnx", node, inputs, constants=constants)
    problem = first_problem(path)
    assert problem is not None and why in problem.why
    assert (problem.node, problem.operator, problem.module) == (node.name, node.op_type, "layers.2")
    with pytest.raises(CheckFailed, match=f"{node.op_type} '{node.name}' of layers.2") as caught:
        check_operators(path)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)


def test_the_opset_has_a_limit_that_int4_weights_lift(tmp_path):
    node = helper.make_node("Exp", ["b"], ["y"], name="layers.1.Exp")
    assert first_problem(graph(tmp_path / "a.onnx", node, {}, opset=20)) is None
    problem = first_problem(graph(tmp_path / "b.onnx", node, {}, opset=21))
    assert problem is not None and "opset 21, at most 20" in problem.why
    weight = helper.make_tensor("w", TensorProto.INT4, [2], b"\x21", raw=True)
    assert first_problem(graph(tmp_path / "c.onnx", node, {}, opset=21, constants=[weight])) is None


@pytest.mark.parametrize(
    ("node", "module"),
    [("layers.3.MatMul_2", "layers.3"), ("blocks.0.mlp.Add", "blocks.0.mlp"), ("Cast", "the model itself")],
)
def test_modules(node, module):
    assert module_of(node) == module
