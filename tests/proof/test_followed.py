"""Ties may be broken either way and nothing else: which codes a reference follows, and whose codes they are."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from linmu.errors import BundleError
from linmu.formats.matrix_format import LARGEST, MatrixFormat
from linmu.proof.followed import MARGIN, Follower, follow
from linmu.step.torch_formats import input_codes
from linmu.verification.compare import Meter

INT8, FP8 = MatrixFormat("int8", input="int8"), MatrixFormat("fp8", input="fp8")
SCALE = torch.tensor(0.03125)
ROOM = {"int8": MARGIN * 127, "fp8": MARGIN * 448}  # in units of x / scale


def allowed(x, shown, format):
    codes, right = follow(torch.tensor([x]) * SCALE, torch.tensor([shown]) * SCALE, format, SCALE)
    return float(codes), bool(right)


@pytest.mark.parametrize(
    ("format", "x", "shown", "code", "right"),
    [
        (INT8, 3.49, 3.51, 4.0, True),  # a tie, broken the other way
        (INT8, 3.51, 3.49, 3.0, True),
        (INT8, 3.47, 3.51, 4.0, False),  # farther from the border than the margin
        (INT8, 3.2, 3.3, 3.0, True),  # the same code, however far apart: inputs have a check of their own
        (INT8, -0.51, -0.49, 0.0, True),
        (INT8, 126.51, 126.49, 126.0, True),
        (INT8, 300.0, 127.0, 127.0, True),  # both saturate
        (INT8, 300.0, 126.0, 126.0, False),
        (INT8, -128.6, -127.49, -127.0, False),
        (INT8, float("nan"), 1.0, 1.0, False),
        (FP8, 17.0 - 0.05, 17.0 + 0.05, 18.0, True),  # E4M3 has 16 and 18
        (FP8, 16.5, 17.5, 18.0, False),
        (FP8, 0.0, 2.0**-9, 2.0**-9, True),  # the smallest step is finer than float32 noise
        (FP8, 0.0, 0.25, 0.25, False),
        (FP8, 500.0, 460.0, 448.0, True),
    ],
)
def test_hand_made_ties(format, x, shown, code, right) -> None:
    assert allowed(x, shown, format) == (code, right)


@given(st.sampled_from([INT8, FP8]), st.floats(-140, 140, width=32), st.floats(-0.96875, 0.96875, width=32))
def test_what_lies_within_the_margin_is_always_followed(format, x, part) -> None:
    _, right = allowed(x, float(np.float32(x) + np.float32(part * (ROOM[format.input] - 2e-5))), format)
    assert right


@given(st.floats(-126, 126, width=32), st.integers(-128, 127))
def test_no_code_away_from_a_border_is_followed(x, code) -> None:
    distance = abs(x - code)
    if abs(distance - 0.5 - ROOM["int8"]) > 1e-4:  # not the margin's own last bit
        assert allowed(x, float(code), INT8)[1] == (distance <= 0.5 + ROOM["int8"])


def test_a_reference_takes_over_ties_and_keeps_its_own_code_elsewhere() -> None:
    meter = Meter()
    follower = Follower(meter)
    x = torch.tensor([[[3.499, 7.2, 5.3]]]) * SCALE
    shown = torch.tensor([[[3.501, 7.2, 6.3]]]) * SCALE
    follower.inputs, follower.twins, follower.step = {"down": shown.numpy()}, {"down": x.numpy()}, 7
    seen = follower("down", x, INT8, SCALE) / SCALE
    assert seen.tolist() == [[[4.0, 7.0, 5.0]]]
    assert (follower.codes, follower.ties) == (3, 1)
    assert not meter.ok and meter.first is not None
    assert (meter.first.tensor, meter.first.step) == ("input of down", 7) and meter.first.element.endswith("[0, 0, 2]")


def test_the_margin_follows_the_twin_up_to_a_limit() -> None:
    follower = Follower(Meter())
    x = torch.ones(1, 1, 4) * SCALE
    follower.inputs = {"down": x.numpy()}
    for noise, margin in ((0.0, 1.0), (2.0, 8.0), (500.0, 5.0 * 8 / 8)):
        follower.noise = 0.0
        follower.twins = {"down": (x + noise * MARGIN * 127 * SCALE).numpy()}
        follower("down", x, INT8, SCALE)
        assert follower.margin == pytest.approx(min(margin, 5.0) * MARGIN, rel=1e-3)


@pytest.mark.parametrize("given_", [{}, {"down": np.zeros((1, 2, 3), np.float32)}])
def test_a_graph_that_does_not_round_an_input_is_named(given_) -> None:
    follower = Follower(Meter())
    follower.inputs = given_
    with pytest.raises(BundleError, match="rounded input of down"):
        follower("down", torch.zeros(1, 2, 4), INT8, SCALE)


@pytest.mark.parametrize(("format", "element"), [(INT8, TensorProto.INT8), (FP8, TensorProto.FLOAT8E4M3FN)])
def test_codes_are_those_of_onnx_runtime(format, element) -> None:
    """Codes are computed from the values in front of QuantizeLinear: the kernel must give the very same."""
    zero = helper.make_tensor("zero", element, [], b"\0", raw=True)
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [float(SCALE)])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [zero, scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(3)
    spread = generator.standard_normal(20011) * LARGEST[format.input] / 2
    borders = np.arange(-200, 200) / 2 + generator.choice([0, 1e-6, -1e-6], 400)  # ties and next to them
    x = (np.concatenate([spread, borders, borders / 64]) * float(SCALE)).astype(np.float32)
    wanted = input_codes(torch.from_numpy(x), format, SCALE) * SCALE
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], wanted.numpy())
