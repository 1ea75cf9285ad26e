from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from linmu.errors import BundleError
from linmu.runtimes.tensorrt.onnx_weights import graph_weights


def external(name: str, array: np.ndarray, location: str, offset: int) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(array, name)
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def model() -> onnx.ModelProto:
    first = external("a", np.ones((3, 5), np.float32), "one.data", 0)
    constant = helper.make_node("Constant", [], ["c"], value=external("c", np.ones(7), "two.data", 64))
    inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("c", 11, [7])])
    nodes = [
        helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Constant", [], ["d"], value=external("d", np.ones((3, 5), np.float32), "one.data", 0)),
    ]
    inline = numpy_helper.from_array(np.arange(9), "inline")
    graph = helper.make_graph(nodes, "g", [], [], [first, inline, external("e", np.ones(2, np.int8), "one.data", 60)])
    return helper.make_model(graph)


def test_data_files_and_bytes(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(model().SerializeToString())
    found = graph_weights(path)
    assert found.data_bytes == {"one.data": 3 * 5 * 4 + 2, "two.data": 7 * 8}  # shared ranges count once
    assert found.file_bytes == path.stat().st_size and found.nbytes == found.file_bytes + 62 + 56


@given(data=st.data())
@settings(deadline=None)
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, data):
    content = model().SerializeToString()
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        content = data.draw(st.binary(max_size=60))
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    try:
        assert graph_weights(path).file_bytes == len(content)
    except BundleError as error:
        assert "any.onnx cannot be read as ONNX" in str(error) and "\n" not in str(error)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(BundleError, match="none.onnx"):
        graph_weights(tmp_path / "none.onnx")
