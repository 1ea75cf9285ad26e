"""Graphs of the jetson style in ONNX Runtime: equal to the eager step form, rounding for rounding."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from linmu.export.decoder_graphs import window_row, write_decoder_graphs
from linmu.export.jetson_bundle import OPSET, STYLE
from linmu.export.trt_operators import first_problem
from linmu.export.weight_file import write_weights
from linmu.processing.defaults import VIDEO_DEFAULTS
from linmu.step import decoder
from linmu.step.form import is_matrix
from linmu.step.half_ops import HalfOps
from linmu.step.pack import decoder_form
from linmu.verification.eager import ReorderedHalfOps
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
    found = HalfOps(form, halves), ReorderedHalfOps(form, halves)
    for name in halves:
        for ops in found:
            ops.weights[name] = ops.weights[name].half().float()
    return found


@torch.no_grad()
def eager(ops, form, prompt, past):
    deepstack = None if prompt.deepstack is None else torch.from_numpy(prompt.deepstack)
    first = decoder.prefill(
        ops, form, torch.from_numpy(prompt.embeds), torch.from_numpy(prompt.positions), past,
        torch_layout(prompt.layout), deepstack, None,
    )  # fmt: skip
    positions = step_positions(form, prompt.next_position)
    second = decoder.step(ops, form, torch.tensor([[7]]), positions, past, None)
    return [{"logits": logits, **present} for logits, present in (first, second)]


def run_graphs(folder, form, prompt, past):
    feeds = {"inputs_embeds": prompt.embeds, "position_ids": prompt.positions, **(prompt.layout or {})}
    if prompt.deepstack is not None:
        feeds["deepstack"] = prompt.deepstack
    one = {"input_ids": np.array([[7]]), "position_ids": step_positions(form, prompt.next_position).numpy()}
    options, found = ort.SessionOptions(), []
    options.log_severity_level = 3
    for name, inputs in (("prefill", feeds), ("step", one)):
        session = ort.InferenceSession(folder / f"{name}.onnx", options)
        outputs = session.run(None, inputs | {key: value.numpy() for key, value in past.items()})
        found.append(dict(zip((o.name for o in session.get_outputs()), outputs, strict=True)))
    return found


def write(folder, form, half: bool):
    stored = write_weights(folder / "weights.data", form.weights, half, whole=(KEPT,))
    return write_decoder_graphs(folder, form, stored, "weights.data", STYLE)[0]


@pytest.mark.parametrize("half", (False, True), ids=("float", "half"))
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_graphs_equal_the_step_form(family, half, tmp_path):
    form, prompt = prompt_of(family)
    write(tmp_path, form, half)
    generator = torch.Generator().manual_seed(3)
    past = {spec.name: torch.randn(spec.shape, generator=generator) * 0.3 for spec in form.state_specs()}
    ops, twin = tables(form, half)
    wanted, other = (eager(table, form, prompt, past) for table in (ops, twin))
    floats = eager(HalfOps(form, ()), form, prompt, past)
    equal: Counter[str] = Counter()
    for got, want, around, exact in zip(run_graphs(tmp_path, form, prompt, past), wanted, other, floats, strict=True):
        assert got.keys() == want.keys()
        for name, value in want.items():
            room = 5e-5 if not half else 4 * max(worst(around[name], value), QUANTUM)
            assert worst(got[name], value) < room, name
            if name == "logits" and half:  # float16 numbers: equal to the bit but where a rounding border was near
                equal["size"] += value.numel()
                equal["half"] += int((torch.from_numpy(got[name]) == value).sum())
                equal["float"] += int((torch.from_numpy(got[name]) == exact[name]).sum())
    if half:
        assert equal["half"] > 0.6 * equal["size"] and equal["float"] < 0.1 * equal["size"], equal


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
    made = {output: node for node in model.graph.node for output in node.output}
    half = {item.name for item in model.graph.initializer if item.data_type == onnx.TensorProto.FLOAT16}
    assert KEPT not in half and {"layers.0.down", "layers.1.swin", "token_embedding"} <= half

    def narrow(value: str) -> bool:
        """Whether a value is a float16 one as float32."""
        cast = made.get(value)
        source = cast.input[0] if cast is not None and cast.op_type == "Cast" else ""
        return source in half or (source in made and made[source].op_type == "Cast"
                                  and made[source].attribute[0].i == onnx.TensorProto.FLOAT16)  # fmt: skip

    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    narrowed = [node for node in products if all(narrow(value) for value in node.input)]
    # in_proj, swin, out_proj, gate_up, down of 3 layers, two of the windows each, the head; but not the kept one
    assert len(narrowed) == 3 * 7 + 1 - 1
    for node in narrowed:
        (reader,) = [other for other in model.graph.node if node.output[0] in other.input]
        assert reader.op_type == "Cast" and reader.attribute[0].i == onnx.TensorProto.FLOAT16
