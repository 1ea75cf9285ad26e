"""The text window in ONNX: fused and plain graphs equal the eager step form, at every fill of the window."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from linmu.export.jetson.bundle import STYLE
from linmu.export.onnx.decoder_graphs import FUSED, PLAIN, write_decoder_graphs
from linmu.export.onnx.weight_file import write_weights
from linmu.step import decoder
from linmu.step.call_specs import window_row
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps
from tests.model.students import shared_student
from tests.step.prompts import run_student, step_positions, torch_layout, worst
from tests.tiny import tiny_inputs

WINDOW, SINKS = 5, 2
STYLES = {"fused": FUSED, "plain": PLAIN, "jetson": STYLE}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("family", "sinks"), [("llama", 0), ("llama", SINKS), ("qwen3_vl", SINKS)])
def test_text_window_graphs(family, sinks, style, tmp_path):
    student, tokenizer = shared_student(family, chunk_size=8, text_window=WINDOW, text_sinks=sinks)
    form = decoder_form(student)
    ops = TorchOps(form)
    stored = write_weights(tmp_path / "weights.data", form.weights, half=False)
    write_decoder_graphs(tmp_path, form, stored, "weights.data", STYLES[style])
    sessions = {name: ort.InferenceSession(tmp_path / f"{name}.onnx") for name in ("prefill", "step")}
    kind = "text" if family == "llama" else "image"
    row = window_row(form) if style == "jetson" else None
    prompt = run_student(student, tiny_inputs(family, student, tokenizer, kind=kind), form, row)
    generator = torch.Generator().manual_seed(0)
    for fill in (0, 1, SINKS, WINDOW - 1, WINDOW, WINDOW + SINKS, 3 * WINDOW):
        past = {spec.name: torch.randn(spec.shape, generator=generator) for spec in form.state_specs()}
        filled = torch.tensor([fill])
        deepstack = None if prompt.deepstack is None else torch.from_numpy(prompt.deepstack)
        with torch.no_grad():
            logits, present = decoder.prefill(
                ops,
                form,
                torch.from_numpy(prompt.embeds),
                torch.from_numpy(prompt.positions),
                past,
                torch_layout(prompt.layout),
                deepstack,
                filled,
            )
        feeds = {"inputs_embeds": prompt.embeds, "position_ids": prompt.positions, **(prompt.layout or {})}
        if prompt.deepstack is not None:
            feeds["deepstack"] = prompt.deepstack
        _compare(sessions["prefill"], feeds, past, filled, logits, present)
        positions = step_positions(form, 41)
        with torch.no_grad():
            logits, present = decoder.step(ops, form, torch.tensor([[9]]), positions, past, filled)
        feeds = {"input_ids": np.array([[9]]), "position_ids": positions.numpy()}
        _compare(sessions["step"], feeds, past, filled, logits, present)


def _compare(session, feeds, past, fill, logits, present) -> None:
    feeds = feeds | {name: value.numpy() for name, value in past.items()} | {"past_length": fill.numpy()}
    outputs = dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))
    assert worst(outputs["logits"], logits) < 1e-5
    for name, value in present.items():
        assert worst(outputs[name], value) < 1e-5, name
