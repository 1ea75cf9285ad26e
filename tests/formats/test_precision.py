"""A manifest's precision is read once: it says what exporters write, and does not contradict itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from linmu.errors import BundleError
from linmu.formats.matrix_format import INPUTS
from linmu.formats.precision import QUANTIZED, Precision

FLOAT = Precision("fp16", "fp16", "fp16", opset=19, vision_opset=18, float32_matrices=("layers.0.down",))
INT8 = Precision("int8", "fp16", ops="fused", matrix_inputs=("int8", "int8_blocks"), group_size=16, opset=21)
PHONE = Precision("8da4w", ops="executorch", matrix_inputs=("int8_rows",), group_size=32, delegate="xnnpack")


@pytest.mark.parametrize("precision", [Precision(), FLOAT, INT8, PHONE])
def test_round_trip_through_json(precision):
    data = json.loads(json.dumps(precision.to_json()))
    assert Precision.from_json(data) == precision and None not in data.values()


def test_every_preset_can_be_written():
    assert set(QUANTIZED) == {"int8", "int4", "fp8", "8da4w", "8da8w", "auto"}
    for name in QUANTIZED:
        assert Precision.from_json(Precision(name, "fp16").to_json()).quantized
    assert not FLOAT.quantized


def test_each_kind_of_input_is_itself_and_no_other():
    """int8_blocks and int8_rows begin like int8, whose one scale asks ONNX Runtime for other switches."""
    told = {}
    for kind in filter(None, INPUTS):
        found = replace(INT8, matrix_inputs=(kind,))
        told[kind] = (found.static_int8, found.static_fp8, found.rounds_by_block)
    assert told == {
        "int8": (True, False, False),
        "fp8": (False, True, False),
        "int8_blocks": (False, False, True),
        "int8_rows": (False, False, False),
    }
    assert (INT8.static_int8, INT8.rounds_by_block) == (True, True)


@pytest.mark.parametrize(
    ("precision", "change", "message"),
    [
        (INT8, {"surprise": 1}, "precision; got unknown key 'surprise'"),
        (INT8, {"weights": "int2"}, "precision.weights; got 'int2'; expected one of fp32, fp16, int8"),
        (INT8, {"weights": ["int8"]}, "precision.weights; got list"),
        (INT8, {"floats": "int8"}, "precision.floats; got 'int8'; expected one of fp32, fp16"),
        (INT8, {"activations": "bf16"}, "precision.activations; got 'bf16'"),
        (INT8, {"state": "float32"}, "precision.state; got 'float32'"),
        (INT8, {"ops": "custom"}, "precision.ops; got 'custom'; expected one of fused, plain, executorch"),
        (INT8, {"matrix_inputs": "int8"}, "precision.matrix_inputs; got str"),
        (INT8, {"matrix_inputs": ["int8", "int8"]}, "precision.matrix_inputs"),
        (INT8, {"matrix_inputs": ["int8_blocks", "int8"]}, "precision.matrix_inputs.*sorted"),
        (INT8, {"matrix_inputs": ["int9"]}, "precision.matrix_inputs"),
        (INT8, {"matrix_inputs": [""]}, "precision.matrix_inputs"),
        (INT8, {"matrix_inputs": [8]}, "precision.matrix_inputs"),
        (INT8, {"float32_matrices": [1]}, "precision.float32_matrices"),
        (INT8, {"group_size": 0}, "precision.group_size; got 0"),
        (INT8, {"group_size": -16}, "precision.group_size"),
        (INT8, {"group_size": None}, "precision.group_size; got NoneType"),
        (INT8, {"opset": True}, "precision.opset; got bool"),
        (PHONE, {"delegate": ""}, "precision.delegate"),
        (FLOAT, {"floats": "fp32"}, "precision.floats; got fp32; expected 'fp16' beside weights in fp16"),
        (FLOAT, {"matrix_inputs": ["int8"]}, "precision.matrix_inputs.*beside weights in fp16"),
        (FLOAT, {"group_size": 32}, "precision.group_size; got 32"),
    ],
)
def test_each_contradiction_is_named_in_one_line(precision, change, message):
    with pytest.raises(BundleError, match="^manifest.json: " + message) as caught:
        Precision.from_json({**precision.to_json(), **change})
    assert "\n" not in str(caught.value) and "export the bundle again" in str(caught.value)


@pytest.mark.parametrize("name", ["weights", "floats", "activations", "state", "ops", "matrix_inputs"])
def test_what_is_always_there_is_needed(name):
    data = INT8.to_json()
    del data[name]
    with pytest.raises(BundleError, match=f"no key '{name}'"):
        Precision.from_json(data)
    with pytest.raises(BundleError, match="expected a JSON object"):
        Precision.from_json([])
