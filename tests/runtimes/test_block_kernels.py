"""The product that tells whether this CPU's kernels round by block, against the same product written with onnx."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from linmu.runtimes.block_kernels import PRODUCT, rounds_by_block


def product(level: int) -> onnx.ModelProto:
    node = helper.make_node(
        "MatMulNBits",
        ["x", "q", "s"],
        ["y"],
        domain="com.microsoft",
        K=32,
        N=1,
        bits=8,
        block_size=32,
        accuracy_level=level,
    )
    graph = helper.make_graph(
        [node],
        "p",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [
            numpy_helper.from_array(np.full((1, 1, 32), 129, np.uint8), "q"),
            numpy_helper.from_array(np.ones(1, np.float32), "s"),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_the_stored_product_is_this_one():
    assert onnx.load_from_string(PRODUCT) == product(4)


@pytest.mark.parametrize("level", [1, 4])
def test_what_a_kernel_gives_is_one_of_the_two_functions(level):
    inputs = np.full((1, 32), 0.4, np.float32)
    inputs[0, 0] = 127
    (found,) = ort.InferenceSession(product(level).SerializeToString()).run(None, {"x": inputs})
    rounded = level == 4 and rounds_by_block()
    assert float(found[0, 0]) == pytest.approx(127 if rounded else 127 + 31 * 0.4, rel=1e-5)
