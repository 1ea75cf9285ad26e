"""Graphs of the jetson style in ONNX Runtime: equal to the eager step form, rounding for rounding."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from linmu.export.jetson.bundle import OPSET, STYLE
from linmu.export.jetson.trt_operators import first_problem
from linmu.export.onnx.decoder_graphs import write_decoder_graphs
from linmu.export.onnx.weight_file import write_weights
from linmu.processing.defaults import VIDEO_DEFAULTS
from linmu.reference.eager import DrawnHalfOps
from linmu.step import decoder
from linmu.step.call_specs import window_row
from linmu.step.form import is_matrix
from linmu.step.half_ops import HalfOps
from linmu.step.pack import decoder_form
from tests.export.half_products import (
    assert_half_product,
    expose_half_products,
    recorded,
    run_exposed,
    shapes,
)
from tests.model.students import shared_student
from tests.step.prompts import run_student, step_positions, torch_layout, worst
from tests.tiny import FAMILY_NAMES, VISION_NAMES, tiny_inputs

QUANTUM = 2.0**-10
KEPT = "layers.1.down"  # stays float32 in the half precision graphs
GRAPHS = ("token_embedding", "prefill", "step")


@cache
def prompt_of(family: str):
    student, tokenizer = shared_student(family)
    form = decoder_form(student)
    kind = "two_images" if family in VISION_NAMES else "text"
    return form, run_student(student, tiny_inputs(family, student, tokenizer, kind=kind), form, window_row(form))


def tables(form, half: bool):
    """(reference, its twin) with weights rounded as they are stored."""
    halves = [name for name in form.weights if half and is_matrix(name) and name != KEPT]
    found = HalfOps(form, halves), DrawnHalfOps(form, halves)
    for name in halves:
        for ops in found:
            ops.weights[name] = ops.weights[name].half().float()
    return found


@torch.no_grad()
def eager(ops, form, prompt, past):
    deepstack = None if prompt.deepstack is None else torch.from_numpy(prompt.deepstack)
    first = decoder.prefill(
        ops,
        form,
        torch.from_numpy(prompt.embeds),
        torch.from_numpy(prompt.positions),
        past,
        torch_layout(prompt.layout),
        deepstack,
        None,
    )
    positions = step_positions(form, prompt.next_position)
    second = decoder.step(ops, form, torch.tensor([[7]]), positions, past, None)
    return [{"logits": logits, **present} for logits, present in (first, second)]


def random_past(form) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {spec.name: torch.randn(spec.shape, generator=generator) * 0.3 for spec in form.state_specs()}


def graph_feeds(form, prompt, past) -> dict[str, dict[str, np.ndarray]]:
    """Inputs of prefill and step, by graph; both start from the same states."""
    state = {key: value.numpy() for key, value in past.items()}
    feeds = {"inputs_embeds": prompt.embeds, "position_ids": prompt.positions, **(prompt.layout or {})}
    if prompt.deepstack is not None:
        feeds["deepstack"] = prompt.deepstack
    one = {"input_ids": np.array([[7]]), "position_ids": step_positions(form, prompt.next_position).numpy()}
    return {"prefill": feeds | state, "step": one | state}


def run_graph(path, feeds) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options)
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


def write(folder, form, half: bool):
    stored = write_weights(folder / "weights.data", form.weights, half, float32_matrices=(KEPT,))
    return write_decoder_graphs(folder, form, stored, "weights.data", STYLE)[0]


@pytest.mark.parametrize("half", (False, True), ids=("float", "half"))
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_graphs_equal_the_step_form(family, half, tmp_path):
    form, prompt = prompt_of(family)
    write(tmp_path, form, half)
    past = random_past(form)
    wanted, other = (eager(table, form, prompt, past) for table in tables(form, half))
    graphs = graph_feeds(form, prompt, past)
    for (name, feeds), want, around in zip(graphs.items(), wanted, other, strict=True):
        got = run_graph(tmp_path / f"{name}.onnx", feeds)
        assert got.keys() == want.keys()
        for tensor, value in want.items():
            room = 5e-5 if not half else 2 * max(worst(around[tensor], value), QUANTUM)  # a twin that draws moves far
            assert worst(got[tensor], value) < room, tensor


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_half_products_round_as_the_step_form_does(family, tmp_path):
    """Product by product: sums in another order move results next to a rounding border, and all that comes after."""
    form, prompt = prompt_of(family)
    write(tmp_path, form, half=True)
    past, (reference, _) = random_past(form), tables(form, half=True)
    found: list[list[np.ndarray]] = []
    wanted: list[list[np.ndarray]] = []
    reference.half_product = recorded(reference.half_product, wanted)
    eager(reference, form, prompt, past)
    for name, feeds in graph_feeds(form, prompt, past).items():
        path = tmp_path / f"{name}.onnx"
        values, products = run_exposed(path, feeds)
        for tensor, value in run_graph(path, feeds).items():  # no rounding is lost where no one looks at it
            np.testing.assert_array_equal(values[tensor], value, err_msg=tensor)
        found += products
    assert shapes(found) == shapes(wanted)
    for product in found + wanted:
        assert_half_product(*product)


@pytest.mark.parametrize("half", (False, True), ids=("float", "half"))
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_tensorrt_parses_every_node(family, half, tmp_path):
    form, _ = prompt_of(family)
    specs = write(tmp_path, form, half)
    for name in GRAPHS:
        path = tmp_path / f"{name}.onnx"
        assert first_problem(path) is None, name
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(str(path), full_check=True)
        kinds = {node.op_type for node in model.graph.node}
        assert not kinds & {"CumSum", "If", "Loop", "Scan", "Mod", "Gelu"}
        assert [item.version for item in model.opset_import] == [OPSET]
    dims = {dim for spec in (*specs["step"].inputs, *specs["step"].outputs) for dim in spec.shape}
    assert not [dim for dim in dims if isinstance(dim, str)]
    windows = [spec.shape[-1] for spec in specs["prefill"].inputs if spec.name.startswith("layout.window")]
    row = 8 if family in VIDEO_DEFAULTS else 4  # windows of clips have two frames
    assert windows == [row, row, "tokens"] * form.vision


def test_half_products_stand_between_casts(tmp_path):
    """Every large product has float16 on all sides, which is what TensorRT makes a half precision kernel of."""
    form, _ = prompt_of("qwen3_vl")
    write(tmp_path, form, half=True)
    model = onnx.load(tmp_path / "prefill.onnx", load_external_data=False)
    half = {item.name for item in model.graph.initializer if item.data_type == onnx.TensorProto.FLOAT16}
    assert KEPT not in half and {"layers.0.down", "layers.1.swin", "token_embedding"} <= half
    # in_proj, swin, out_proj, gate_up, down of 3 layers, two of the windows each, the head; but not the kept one
    assert len(expose_half_products(tmp_path / "prefill.onnx")[1]) == 3 * 7 + 1 - 1
