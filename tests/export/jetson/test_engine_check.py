"""Compiling graphs with TensorRT-RTX in a process of its own: what it says of good, refused and deadly files."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from linmu.errors import CheckFailed
from linmu.export.jetson import engine_check
from linmu.export.jetson.engine_check import ABSENT, SKIPPED, capability_of, check_engines, compile_graph
from linmu.formats.precision import Precision
from linmu.runtimes.tensorrt import compiler
from linmu.specs import GraphSpec
from tests.bundles import tiny_manifest

FLOAT = onnx.TensorProto.FLOAT
needs_compiler = pytest.mark.skipif(
    not engine_check.installed(engine_check.COMPILER), reason="tensorrt_rtx is not installed"
)


def write(path, *nodes, shape=(1, "tokens", 6)):
    values = [helper.make_tensor_value_info(name, FLOAT, list(shape)) for name in ("x", "y")]
    weight = helper.make_tensor("w", FLOAT, [6, 6], [0.5] * 36)
    graph = helper.make_graph(list(nodes), "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def product(name="layers.1.MatMul"):
    return helper.make_node("MatMul", ["x", "w"], ["y"], name=name)


PROFILE = {"x": {"min": [1, 1, 6], "opt": [1, 8, 6], "max": [1, 64, 6]}}


@needs_compiler
def test_a_graph_compiles(tmp_path):
    found = compile_graph(write(tmp_path / "g.onnx", product()), PROFILE)
    assert found["engine_bytes"] > 6 * 6 * 4 and found["seconds"] > 0 and found["layers"] >= 1
    assert found["peak_bytes"] > 2**24 and found["version"].startswith("1.")


@needs_compiler
def test_what_the_parser_refuses_is_named_with_its_module(tmp_path):
    odd = helper.make_node("Det", ["x"], ["z"], name="layers.3.Det")
    path = write(tmp_path / "step.onnx", odd, helper.make_node("Add", ["z", "x"], ["y"], name="layers.3.Add"))
    with pytest.raises(CheckFailed, match="step.onnx: TensorRT.*cannot parse node 'layers.3.Det', Det") as caught:
        compile_graph(path, PROFILE)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)


@needs_compiler
def test_what_the_builder_refuses_is_told(tmp_path):
    path = write(tmp_path / "step.onnx", product())
    with pytest.raises(CheckFailed, match="step.onnx: TensorRT could not compile it"):
        compile_graph(path, {})  # a dynamic shape without a profile


def test_a_dying_compiler_fails_the_check_only(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "PROGRAM", "tests.export.no_such_program")
    with pytest.raises(CheckFailed, match="died while compiling; got exit code 1.*--no-compile-check"):
        compile_graph(write(tmp_path / "step.onnx", product()), PROFILE)


@pytest.mark.parametrize(("wanted", "note"), [(True, ABSENT), (False, SKIPPED)])
def test_without_a_compiler_the_operators_are_still_checked(wanted, note, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_check, "COMPILER", "no_such_package")
    manifest = tiny_manifest(graphs={"step": GraphSpec("step.onnx", (), ())}, state=(), state_bytes=0)
    write(tmp_path / "step.onnx", product())
    assert check_engines(tmp_path, manifest, wanted) == {
        "compiler": None,
        "capability": None,
        "note": note,
        "graphs": {},
    }
    write(tmp_path / "step.onnx", helper.make_node("Gelu", ["x"], ["y"], name="layers.0.Gelu"))
    with pytest.raises(CheckFailed, match="Gelu 'layers.0.Gelu' of layers.0"):
        check_engines(tmp_path, manifest, wanted)


@pytest.mark.parametrize(("inputs", "capability"), [((), "8.6"), (("int8",), "8.6"), (("fp8",), "8.9")])
def test_what_is_compiled_for_follows_from_the_products(inputs, capability):
    assert capability_of(tiny_manifest(precision=Precision(matrix_inputs=inputs))) == capability


@needs_compiler
@pytest.mark.parametrize(("element", "capability"), [("INT8", "8.6"), ("FLOAT8E4M3FN", "8.9")])
def test_products_of_rounded_inputs_compile(tmp_path, element, capability):
    kind = getattr(onnx.TensorProto, element)
    weights = [
        helper.make_tensor("scale", FLOAT, [], [0.03]),
        helper.make_tensor("zero", kind, [], b"\0", raw=True),
        helper.make_tensor("w", kind, [6, 6], bytes(range(1, 37)), raw=True),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["seen"]),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["value"]),
        helper.make_node("MatMul", ["seen", "value"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, FLOAT, [1, "tokens", 6]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    (tmp_path / "step.onnx").write_bytes(model.SerializeToString())
    assert compile_graph(tmp_path / "step.onnx", PROFILE, capability)["layers"] >= 1
