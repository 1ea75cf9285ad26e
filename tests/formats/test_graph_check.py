"""Graphs that no exporter writes are refused before a runtime opens them; those that they write are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from linmu.errors import BundleError
from linmu.formats.graph_check import check_graph_file, graph_weights
from linmu.formats.manifest import FileEntry
from linmu.specs import GraphSpec, StateSpec
from tests.bundles import tiny_manifest

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
MANIFEST = replace(tiny_manifest(), files={"weights.data": FileEntry("0" * 64, 200), "g.onnx": FileEntry("0" * 64, 9)})


def constant(name, values):
    return numpy_helper.from_array(np.array(values), name)


def outside(name="w", location="weights.data", offset=0, length=24, dims=(2, 3)):
    tensor = TensorProto(name=name, data_type=FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def saved(folder, nodes, constants=(), change=lambda model: None):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", FLOAT, ["n", 3])], [value("y", FLOAT, None)], constants)
    model = helper.make_model(graph)
    change(model)
    (folder / "g.onnx").write_bytes(model.SerializeToString())
    return folder


def refused(folder, match, weights=None):
    with pytest.raises(BundleError, match=match) as caught:
        check_graph_file(folder, "g.onnx", MANIFEST, weights)
    assert "g.onnx holds what linmu does not write" in str(caught.value) and "\n" not in str(caught.value)


def node(operator, *inputs, output="y", **more):
    return helper.make_node(operator, inputs, [output], **more)


def branch(operator, *inputs, **more):
    made = helper.make_node(operator, inputs, ["b"], **more)
    return helper.make_graph([made], "b", [], [helper.make_tensor_value_info("b", FLOAT, None)])


def test_what_an_exporter_writes(tmp_path):
    nodes = [
        node("MatMul", "x", "w", output="a"),
        node("Shape", "a", output="s"),
        node("Concat", "s", "two", output="t", axis=0),
        node("ConstantOfShape", "t", output="z"),
        node("Sqrt", "z", output="r"),
        node("Div", "a", "r", output="d"),
        node("Div", "d", "half", output="e"),
        node("Slice", "e", "two", "end", output="f"),
        node("Cast", "w", output="v", to=FLOAT),
        node("If", "flag", then_branch=branch("Add", "f", "v"), else_branch=branch("Identity", "f")),
    ]
    constants = [
        outside(dims=(3, 2)),
        constant("two", [2]),
        constant("half", np.float32(-0.5)),
        constant("end", [2**63 - 1]),
        constant("flag", True),
    ]
    check_graph_file(saved(tmp_path, nodes, constants), "g.onnx", MANIFEST, {"w": (0, 24)})


@pytest.mark.parametrize("operator", ["Loop", "Scan", "Mod", "Tile", "OneHot", "Resize", "Unknown", "SequenceEmpty"])
def test_operators_that_no_exporter_writes(tmp_path, operator):
    refused(saved(tmp_path, [node(operator, "x")]), f"operator ai.onnx.{operator}")
    inner = branch(operator, "x")
    nodes = [node("If", "c", then_branch=inner, else_branch=inner)]
    refused(saved(tmp_path, nodes, [constant("c", True)]), f"operator ai.onnx.{operator}")


def test_other_domains(tmp_path):
    refused(saved(tmp_path, [node("Add", "x", "x", domain="com.microsoft")]), "operator com.microsoft.Add")
    add = lambda model: model.opset_import.append(helper.make_opsetid("custom", 1))  # noqa: E731
    refused(saved(tmp_path, [node("Neg", "x")], change=add), "operators of 'custom'")


@pytest.mark.parametrize(
    ("operator", "values", "more"),
    [
        ("Div", [[-(2**63)], [-1]], {}),
        ("Div", [[1], [0]], {}),
        ("Mul", [[2**20], [2**20]], {}),
        ("Expand", [[1], [3]], {}),
        ("Concat", [[1], [2]], {"axis": 0}),
        ("Range", [0, 9, 1], {}),
        ("MatMul", [np.ones((1, 1), np.float32), np.ones((1, 1), np.float32)], {}),
    ],
)
def test_nothing_is_computed_while_a_graph_is_opened(tmp_path, operator, values, more):
    constants = [constant(f"c{i}", x) for i, x in enumerate(values)]
    made = node(operator, *(x.name for x in constants), **more)
    refused(saved(tmp_path, [made], constants), "positive constant|constants alone|in Div")


@pytest.mark.parametrize("divisor", [[0], [-1], [2, -1], [], None])
def test_divisors_of_whole_numbers(tmp_path, divisor):
    nodes = [node("Shape", "x", output="s"), node("Div", "s", "c" if divisor is not None else "s")]
    refused(saved(tmp_path, nodes, [constant("c", np.array(divisor or [], np.int64))]), "a divisor that is no positive")


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ConstantOfShape", "big")],
        [node("Expand", "x", "big")],
        [node("Shape", "x", output="s"), node("Concat", "s", "big", output="t", axis=0), node("ConstantOfShape", "t")],
        [node("Shape", "x", output="s"), node("Gather", "s", "zero", output="n"), node("Range", "zero", "huge", "n")],
        [node("Add", "huge", "x")],
    ],
)
def test_sizes_that_the_bundle_does_not_hold(tmp_path, nodes):
    constants = [constant("big", [2**20, 2**20]), constant("zero", 0), constant("huge", 2**40)]
    refused(saved(tmp_path, nodes, constants), "sizes|1099511627776")


PAST = helper.make_tensor_value_info("past", FLOAT, ["n", 2, 5, 3])
WRITTEN = node("TensorScatter", "past", "x", "i", output="k", axis=2)


def attending(model):
    """The graph with a state as its second input, and a slot."""
    model.graph.input.extend([PAST, helper.make_tensor_value_info("i", INT64, ["n"])])


def test_attention_over_a_written_state(tmp_path):
    saved(tmp_path, [WRITTEN, node("Attention", "x", "k", "k", scale=0.5)], change=attending)
    check_graph_file(tmp_path, "g.onnx", MANIFEST)


@pytest.mark.parametrize(
    ("nodes", "match"),
    [
        ([node("Attention", "x", "past", "past")], "no state"),
        ([WRITTEN, node("Reshape", "k", "i", output="r"), node("Attention", "x", "r", "r")], "no state"),
        ([WRITTEN, node("Attention", "x", "k", "k", kv_num_heads=0)], "no state"),
        ([WRITTEN, node("Attention", "x")], "no state"),
        ([node("Reshape", "x", "i", output="r"), node("TensorScatter", "r", "x", "i")], "no state"),
        ([helper.make_node("TensorScatter", [], ["y"])], "no state"),
    ],
)
def test_attention_over_what_is_no_state(tmp_path, nodes, match):
    refused(saved(tmp_path, nodes, change=attending), match)


def test_a_state_without_heads(tmp_path):
    """ONNX Runtime divides by the number of key heads: of nothing, the process dies."""
    saved(tmp_path, [WRITTEN, node("Attention", "x", "k", "k")], change=attending)
    none = StateSpec("past", "present", "float32", ("batch", 0, 5, 3), ("batch", "kv_head", "slot", "key"))
    with pytest.raises(BundleError, match="no state"):
        check_graph_file(tmp_path, "g.onnx", replace(MANIFEST, state=(none,)))


@pytest.mark.parametrize("name", ["../w", "/etc/hostname", "engines/w", "other.data", "g.onnx", "a\\b", ""])
def test_values_outside_the_bundle(tmp_path, name):
    refused(saved(tmp_path, [node("Add", "x", "w")], [outside(location=name)]), "no data file of the bundle")


@pytest.mark.parametrize(
    ("offset", "length", "dims"), [(180, 24, (2, 3)), (0, 20, (2, 3)), (0, 24, (2, 2**40)), (-1, 24, (2, 3))]
)
def test_values_behind_the_end(tmp_path, offset, length, dims):
    tensor = outside("w", "weights.data", offset, length, dims)
    refused(saved(tmp_path, [node("Add", "x", "w")], [tensor]), "'w'|sizes|place")


def test_values_where_decoder_json_has_others(tmp_path):
    refused(saved(tmp_path, [node("Add", "x", "w")], [outside()]), "elsewhere than in decoder.json", {"w": (64, 24)})


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.functions.add(name="f", domain="d"),
        lambda model: model.training_info.add(),
        lambda model: model.graph.sparse_initializer.add(),
        lambda model: model.graph.initializer.extend([constant("c", [1]), constant("c", [2])]),
        lambda model: model.graph.initializer.append(TensorProto(name="c", data_type=FLOAT, dims=[5], raw_data=b"12")),
        lambda model: model.graph.initializer.append(TensorProto(name="c", data_type=8, dims=[1], string_data=[b"x"])),
        lambda model: model.graph.initializer.append(TensorProto(name="c", data_type=FLOAT, dims=[-1])),
        lambda model: setattr(model.graph.node[0], "overload", "x"),
        lambda model: model.graph.node.append(node("Neg", "later", output="z")),
        lambda model: model.graph.node.append(node("Neg", "x", output="x")),
        lambda model: model.graph.node.append(node("Conv", "x", "x", output="z", pads=[2**30] * 4)),
        lambda model: model.graph.node.append(node("Softmax", "x", output="z", axis=2**40)),
        lambda model: model.graph.node.append(node("Split", "x", output="z", num_outputs=2**40)),
    ],
)
def test_other_things_that_no_exporter_writes(tmp_path, change):
    refused(saved(tmp_path, [node("Neg", "x")], change=change), "got ")


@pytest.mark.parametrize("raw", [b"", b"graph", b"\xff" * 100, b"\x3a\xff\xff\xff\xff\x0f"])
def test_what_is_no_graph(tmp_path, raw):
    (tmp_path / "g.onnx").write_bytes(raw)
    refused(tmp_path, "got ")


def test_branches_inside_branches(tmp_path):
    inner = branch("Neg", "x")
    for _ in range(5):
        inner = branch("If", "c", then_branch=inner, else_branch=inner)
    nodes = [node("If", "c", then_branch=inner, else_branch=inner)]
    refused(saved(tmp_path, nodes, [constant("c", True)]), "branches more than 2 deep")


def test_what_a_graph_reads_of_each_data_file(tmp_path):
    graphs = {"step": GraphSpec("g.onnx", (), ())}
    manifest = replace(MANIFEST, graphs=graphs, files={**MANIFEST.files, "two.data": FileEntry("0" * 64, 99)})
    inner = branch("MatMul", "x", "w")
    nodes = [
        node("If", "c", then_branch=inner, else_branch=inner, output="a"),
        node("MatMul", "x", "w"),
        node("MatMul", "x", "same", output="b"),  # the same bytes count once
        node("MatMul", "x", "v", output="z"),
        node("MatMul", "x", "u", output="t"),
    ]
    constants = [
        constant("c", True),
        outside(),
        outside("same"),
        outside("v", offset=64, length=12, dims=(3, 1)),
        outside("u", "two.data"),
    ]
    saved(tmp_path, nodes, constants)
    weights = graph_weights(tmp_path, graphs)
    assert weights == {"step": {"two.data": 24, "weights.data": 36}}
    check_graph_file(tmp_path, "g.onnx", replace(manifest, graph_weights=weights))
    for stated in ({}, {"weights.data": 36}, {"two.data": 24, "weights.data": 35}):
        with pytest.raises(BundleError, match="where manifest.json says"):
            check_graph_file(tmp_path, "g.onnx", replace(manifest, graph_weights={"step": stated}))


def test_every_cut_of_a_file_is_one_line(tmp_path):
    raw = (saved(tmp_path, [node("MatMul", "x", "w")], [outside(dims=(3, 2))]) / "g.onnx").read_bytes()
    onnx.load_from_string(raw)
    for cut in range(len(raw)):
        (tmp_path / "g.onnx").write_bytes(raw[:cut])
        try:
            check_graph_file(tmp_path, "g.onnx", MANIFEST)
        except BundleError as error:
            assert "\n" not in str(error)
