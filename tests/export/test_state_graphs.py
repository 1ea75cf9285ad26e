"""Graphs that keep their recurrent state in float16 equal the eager step form, call by call."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch

from linmu.export.jetson import engine_check
from linmu.export.jetson.ops import JetsonOps
from linmu.export.jetson.trt_operators import check_operators
from linmu.export.onnx.decoder_graphs import FUSED, PLAIN, GraphStyle, write_decoder_graphs
from linmu.export.onnx.weight_file import write_weights
from linmu.formats.state_precision import read_exact, store
from linmu.step import decoder
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps
from tests.model.students import shared_student
from tests.step.prompts import run_student, step_positions, torch_layout, worst
from tests.tiny import tiny_inputs

JETSON = GraphStyle("plain", JetsonOps, 19, batch=1, fixed_windows=True)
STYLES = {"fused": FUSED, "plain": PLAIN, "jetson": JETSON}
SUMS = 2e-5  # of the largest number of a state: what its float32 sums in another order may differ by


def write(form, folder, style):
    stored = write_weights(folder / "weights.data", form.weights, half=False)
    write_decoder_graphs(folder, form, stored, "weights.data", style)


def call(path, feeds):
    session = ort.InferenceSession(path)
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


def random_state(form):
    rng = np.random.default_rng(7)
    whole = replace(form, state="fp32").state_specs()
    exact = {spec.name: 0.3 * rng.standard_normal(spec.shape).astype(np.float32) for spec in whole}
    return store(form.state_specs(), exact)


def compare(form, outputs, logits, present) -> None:
    """`present`: the float32 states of the reference before they are rounded."""
    assert worst(outputs["logits"], logits) < 2e-5
    for spec in form.state_specs():
        got, wanted = outputs[spec.output], present[spec.output].numpy()
        assert str(got.dtype) == spec.dtype
        if spec.dtype == "float16":
            nearest = np.abs(wanted) * 2.0**-11 + 2.0**-25
            assert (np.abs(got - wanted) <= nearest + SUMS * np.abs(wanted).max()).all(), spec.name
        else:
            assert worst(got, torch.from_numpy(wanted)) < 2e-5, spec.name


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("family", "settings"), [("llama", {"text_window": 5}), ("smolvlm", {"decay": "kv_head"})])
def test_prefill_and_step_round_where_the_reference_does(family, settings, style, tmp_path) -> None:
    student, tokenizer = shared_student(family, chunk_size=16, **settings)
    form, whole = (replace(decoder_form(student), state=name) for name in ("fp16", "fp32"))
    write(form, tmp_path, STYLES[style])
    row = None if style != "jetson" or family == "llama" else _row(form)
    kind = "text" if family == "llama" else "two_images"
    prompt = run_student(student, tiny_inputs(family, student, tokenizer, kind=kind), form, row)
    stored, ops = random_state(form), TorchOps(whole)
    past = {name: torch.from_numpy(value) for name, value in read_exact(form.state_specs(), stored).items()}
    fill = {"past_length": np.array([3])} if form.mmate.text_window else {}
    with torch.no_grad():
        found = decoder.prefill(
            ops,
            whole,
            torch.from_numpy(prompt.embeds),
            torch.from_numpy(prompt.positions),
            past,
            torch_layout(prompt.layout),
            None,
            torch.tensor([3]),
        )
    feeds = {"inputs_embeds": prompt.embeds, "position_ids": prompt.positions, **(prompt.layout or {}), **fill}
    compare(form, call(tmp_path / "prefill.onnx", {**feeds, **stored}), *found)
    positions = step_positions(form, prompt.next_position)
    with torch.no_grad():
        found = decoder.step(ops, whole, torch.tensor([[7]]), positions, past, torch.tensor([3]))
    feeds = {"input_ids": np.array([[7]]), "position_ids": positions.numpy(), **fill}
    compare(form, call(tmp_path / "step.onnx", {**feeds, **stored}), *found)


@pytest.mark.parametrize("style", STYLES)
def test_states_beyond_float16_saturate_in_graphs(style, tmp_path) -> None:
    """What a token repeated for long does (20,000 times: 6.8e4): a state that nothing forgets grows past 65,504."""
    packed = decoder_form(shared_student("llama")[0])
    still = {name: _zeros(thunk) for name, thunk in packed.weights.items() if name.endswith("decay_f")}
    form = replace(packed, state="fp16", weights=packed.weights | still)
    write(form, tmp_path, STYLES[style])
    stored = random_state(form)
    for name in (spec.name for spec in form.state_specs() if spec.dtype == "float16"):
        stored[name] = np.where(stored[name] > 0, np.float16(65504), np.float16(-65504))
    positions = step_positions(form, 5)
    whole = replace(form, state="fp32")
    past = {name: torch.from_numpy(value) for name, value in read_exact(form.state_specs(), stored).items()}
    with torch.no_grad():
        _, present = decoder.step(TorchOps(whole), whole, torch.tensor([[7]]), positions, past, None)
    found = call(tmp_path / "step.onnx", {"input_ids": np.array([[7]]), "position_ids": positions.numpy(), **stored})
    for layer in range(form.layers):
        name = f"present.{layer}.recurrent"
        assert float(present[name].abs().max()) > 65504  # float32 goes on
        assert np.abs(found[name]).max() == np.float16(65504)  # and no infinity


def _zeros(thunk):
    return lambda: torch.zeros_like(thunk())


def _row(form) -> int:
    from linmu.step.call_specs import window_row

    return window_row(form)


def test_tensorrt_takes_the_step_graph(tmp_path) -> None:
    form = replace(decoder_form(shared_student("llama")[0]), state="fp16")
    write(form, tmp_path, JETSON)
    for name in ("prefill", "step"):
        check_operators(tmp_path / f"{name}.onnx")
    if not engine_check.installed(engine_check.COMPILER):
        pytest.skip("tensorrt_rtx is not installed")
    assert engine_check.compile_graph(tmp_path / "step.onnx", {})["engine_bytes"] > 0
