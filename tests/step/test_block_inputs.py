"""Inputs rounded by block: the reference against ONNX Runtime's own kernels, and against float64."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from linmu.formats.matrix_format import MatrixFormat
from linmu.formats.packing import pack, pack_scale
from linmu.quantize.rounding import round_input as round_numpy
from linmu.quantize.rounding import round_matrix
from linmu.step.torch_formats import input_codes, round_input

ROWS, COLUMNS = 96, 35


def kernel(weights: str, level: int, q: np.ndarray, scale: np.ndarray):
    """MatMulNBits of one matrix as a session."""
    format = MatrixFormat(weights, group=32, input="int8_blocks")
    constants = [
        numpy_helper.from_array(pack(q, format, "blocks"), "q"),
        numpy_helper.from_array(pack_scale(scale, "blocks"), "s"),
    ]
    node = helper.make_node(
        "MatMulNBits",
        ["x", "q", "s"],
        ["y"],
        domain="com.microsoft",
        K=ROWS,
        N=COLUMNS,
        bits=format.bits,
        block_size=32,
        accuracy_level=level,
    )
    sides = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", size])]
        for name, size in (("x", ROWS), ("y", COLUMNS))
    ]
    graph = helper.make_graph([node], "g", *sides, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.add_session_config_entry("mlas.disable_kleidiai", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


@pytest.mark.parametrize("weights", ["int4", "int8"])
@pytest.mark.parametrize("tokens", [1, 3, 70])
def test_onnx_runtime_rounds_inputs_as_the_reference_does(weights, tokens):
    random = np.random.default_rng(tokens)
    format = MatrixFormat(weights, group=32, input="int8_blocks")
    matrix = round_matrix(random.standard_normal((ROWS, COLUMNS)).astype(np.float32), format)
    x = random.standard_normal((tokens, ROWS)).astype(np.float32)
    x[0, :32] = 0  # a block without a scale
    rounded = round_input(torch.from_numpy(x), format, torch.ones(()))
    np.testing.assert_array_equal(rounded.numpy(), round_numpy(x, format, None))
    wanted = rounded.numpy().astype(np.float64) @ matrix.value()
    exact = x.astype(np.float64) @ matrix.value()
    std = exact.std()
    found = kernel(weights, 4, matrix.q, matrix.scale)(x)
    assert np.abs(found - wanted).max() < 5e-6 * std
    assert np.abs(found - exact).max() > 1e-3 * std  # it is another function than the unrounded product,
    assert np.abs(kernel(weights, 1, matrix.q, matrix.scale)(x) - exact).max() < 2e-5 * std  # which level 1 computes


def test_ties_go_where_onnx_runtime_takes_them():
    """Next to the border of two codes the last bit of a division decides: every one must be the runtime's own."""
    random = np.random.default_rng(7)
    format = MatrixFormat("int8", group=32, input="int8_blocks")
    largest = random.uniform(0.1, 10, (500, 1)).astype(np.float32)
    borders = (random.integers(-126, 126, (500, ROWS)) + 0.5) * largest / 127
    x = (borders * (1 + random.integers(-2, 3, borders.shape) * 6e-8)).astype(np.float32)
    x[:, ::32] = largest
    one = np.eye(ROWS, COLUMNS, dtype=np.int8)  # shows the code itself
    found = np.rint(kernel("int8", 4, one, np.ones((ROWS // 32, COLUMNS), np.float32))(x) / (largest / 127))
    wanted = input_codes(torch.from_numpy(x), format, torch.ones(())).numpy()[:, :COLUMNS]
    np.testing.assert_array_equal(found, wanted)


def test_what_int8_holds_is_not_moved():
    format = MatrixFormat("int4", group=32, input="int8_blocks")
    x = torch.randint(-127, 128, (5, 64), generator=torch.Generator().manual_seed(0)).float()
    x[:, ::32] = 127
    assert torch.equal(round_input(x, format, torch.ones(())), x)


def test_blocks_need_a_group():
    with pytest.raises(ValueError, match="unknown matrix format"):
        MatrixFormat.from_json({"weights": "int4", "group": 0, "input": "int8_blocks"})
    found = MatrixFormat.from_json({"weights": "int4", "group": 32, "input": "int8_blocks"})
    assert not found.static_input and found.stored_bytes(64, 3) == 64 * 3 // 2 + 2 * 2 * 3
