"""Vision towers with half products: graph and eager tower round alike, and TensorRT parses what is written."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from linmu.errors import InputError
from linmu.export.jetson.bundle import OPSET
from linmu.export.jetson.trt_operators import first_problem
from linmu.export.vision.graph import export_vision
from linmu.reference.eager import SMALLEST_HALF
from linmu.reference.half_tower import HalfProducts
from linmu.reference.vision import build_vision, example_call, run_tower
from tests.export.half_products import assert_half_product, recorded, run_exposed, shapes
from tests.model.students import fresh_student
from tests.tiny import VISION_NAMES


@pytest.mark.parametrize("family", VISION_NAMES)
def test_graph_and_tower_round_alike(family, tmp_path, monkeypatch):
    """All outputs near each other, and product by product: results next to a rounding border move what comes after."""
    student, _ = fresh_student(family)
    tower = build_vision(student, student.linmu_family.name)
    with torch.no_grad():
        for weight in tower.parameters():
            if weight.numel() >= SMALLEST_HALF:
                weight.copy_(weight.half().float())
    path = tmp_path / "vision.onnx"
    export_vision(tower, path, precision="fp16", opset=OPSET, half_products=True)
    assert first_problem(path) is None
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(str(path), full_check=True)
    assert [item.version for item in model.opset_import] == [OPSET]
    assert any("." in node.name for node in model.graph.node if node.op_type == "MatMul")  # named after modules
    call = example_call(tower, seed=3)
    wanted: list[list[np.ndarray]] = []
    with monkeypatch.context() as patched:
        patched.setattr(HalfProducts, "_product", recorded(HalfProducts._product, wanted))
        half = run_tower(tower, call, True)
    twin, whole = run_tower(tower, call, True, True), run_tower(tower, call)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options)
    plain = dict(zip((o.name for o in session.get_outputs()), session.run(None, dict(call)), strict=True))
    values, found = run_exposed(path, dict(call))
    for name, got in plain.items():
        room = 4 * max(float((twin[name] - half[name]).abs().max()), 2.0**-10 * float(half[name].abs().max()))
        assert np.abs(got - half[name].numpy()).max() <= room
        assert not torch.equal(half[name], whole[name])
        np.testing.assert_array_equal(values[name], got, err_msg=name)
    assert shapes(found) == shapes(wanted)
    for product in found + wanted:
        assert_half_product(*product)


def test_every_product_is_replaced():
    random = torch.Generator().manual_seed(0)
    x, y, b = (torch.randn(shape, generator=random) for shape in ((3, 5), (5, 7), (7,)))
    wanted = (x.half().float() @ y.half().float()).half().float()
    with HalfProducts():
        found = [x @ y, torch.matmul(x, y), torch.bmm(x[None], y[None])[0]]
        biased = torch.nn.functional.linear(x, y.T.contiguous(), b)
    assert all(torch.equal(value, wanted) for value in found)
    assert torch.equal(biased, wanted + b)
    assert not torch.equal(x @ y, wanted)  # off again


def test_attention_is_two_half_products():
    random = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn((2, 3, n, 5), generator=random) for n in (4, 6, 6))
    attend = torch.nn.functional.scaled_dot_product_attention
    with HalfProducts():
        found = attend(q, k, v)
        with pytest.raises(InputError):
            attend(q, k, v, is_causal=True)
    assert torch.equal(found, found.half().float())
    assert float((found - attend(q, k, v)).abs().max()) < 5e-3
