"""Vision towers with half products: graph and eager tower round alike, and TensorRT parses what is written."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from linmu.errors import InputError
from linmu.export.half_tower import HalfProducts
from linmu.export.jetson_bundle import OPSET
from linmu.export.trt_operators import first_problem
from linmu.export.vision_graph import build_vision, example_call, export_vision, run_tower
from linmu.verification.eager import SMALLEST_HALF
from tests.model.students import fresh_student
from tests.tiny import VISION_NAMES


def share(got: np.ndarray, wanted: torch.Tensor) -> float:
    return float((torch.from_numpy(got) == wanted).float().mean())


@pytest.mark.parametrize("family", VISION_NAMES)
def test_graph_and_tower_round_alike(family, tmp_path):
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
    half, twin, whole = run_tower(tower, call, True), run_tower(tower, call, True, True), run_tower(tower, call)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options)
    for output, got in zip(session.get_outputs(), session.run(None, dict(call)), strict=True):
        wanted = half[output.name]
        room = 4 * max(float((twin[output.name] - wanted).abs().max()), 2.0**-10 * float(wanted.abs().max()))
        assert np.abs(got - wanted.numpy()).max() <= room
        # a rounding that comes out otherwise moves what depends on it; without roundings nothing would be equal
        assert share(got, wanted) > 0.2 and share(got, whole[output.name]) < 0.01


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
