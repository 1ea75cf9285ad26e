"""Fused and plain graphs equal the eager step form on random states, for every family; both variants agree."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from linmu.export.onnx.decoder_graphs import FUSED, PLAIN, write_decoder_graphs
from linmu.export.onnx.weight_file import write_weights
from linmu.layout import PromptLayout, layout_tensors
from linmu.step import decoder
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps
from tests.model.students import shared_student
from tests.step.prompts import run_student, step_positions, torch_layout, worst
from tests.tiny import FAMILY_NAMES, VISION_NAMES, tiny_inputs

SETTINGS = {
    "default": {"chunk_size": 16},
    "kv_head, skip, 3 taps": {"chunk_size": 8, "decay": "kv_head", "skip": True, "taps": 3},
    "causal windows, one way": {"chunk_size": 16, "causal_windows": True, "backward": False},
}


def _sessions(form, folder, plain):
    stored = write_weights(folder / "weights.data", form.weights, half=False)
    _, reports = write_decoder_graphs(folder, form, stored, "weights.data", PLAIN if plain else FUSED)
    return {name: ort.InferenceSession(folder / f"{name}.onnx") for name in ("prefill", "step")}, reports


def _run(session, feeds):
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


@pytest.mark.parametrize("plain", (False, True), ids=("fused", "plain"))
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_graphs_equal_the_step_form(family, setting, plain, tmp_path):
    student, tokenizer = shared_student(family, **SETTINGS[setting])
    form = decoder_form(student)
    ops = TorchOps(form)
    sessions, _ = _sessions(form, tmp_path, plain)
    kind = "two_images" if family in VISION_NAMES else "text"
    prompt = run_student(student, tiny_inputs(family, student, tokenizer, kind=kind), form)
    generator = torch.Generator().manual_seed(3)
    past = {spec.name: torch.randn(spec.shape, generator=generator) * 0.3 for spec in form.state_specs()}
    numbers = {name: value.numpy() for name, value in past.items()}
    deepstack = None if prompt.deepstack is None else torch.from_numpy(prompt.deepstack)
    feeds = {"inputs_embeds": prompt.embeds, "position_ids": prompt.positions, **(prompt.layout or {}), **numbers}
    if prompt.deepstack is not None:
        feeds["deepstack"] = prompt.deepstack
    with torch.no_grad():
        logits, present = decoder.prefill(
            ops,
            form,
            torch.from_numpy(prompt.embeds),
            torch.from_numpy(prompt.positions),
            past,
            torch_layout(prompt.layout),
            deepstack,
            None,
        )
    _compare(_run(sessions["prefill"], feeds), logits, present)
    positions = step_positions(form, prompt.next_position)
    with torch.no_grad():
        logits, present = decoder.step(ops, form, torch.tensor([[7]]), positions, past, None)
    stepped = _run(sessions["step"], {"input_ids": np.array([[7]]), "position_ids": positions.numpy(), **numbers})
    _compare(stepped, logits, present)
    _compare(_run(sessions["prefill"], _one_token(form, ops, 7, positions, numbers)), logits, present)


def _one_token(form, ops, token, positions, numbers):
    """A decode step as a prefill of one text token: what the runtime does."""
    layout = {}
    if form.vision:
        alone = PromptLayout(1, (), np.zeros((form.rope_axes, 1), np.int64), 1)
        layout = layout_tensors(alone, form.mmate, never_empty=True)
    embeds = ops.embed(torch.tensor([[token]]), "token_embedding").numpy()
    feeds = {"inputs_embeds": embeds, "position_ids": positions.numpy(), **layout, **numbers}
    if form.deepstack:
        feeds["deepstack"] = np.zeros((form.deepstack, *embeds.shape), np.float32)
    return feeds


def _compare(outputs, logits, present) -> None:
    assert worst(outputs["logits"], logits) < 5e-5
    for name, value in present.items():
        assert worst(outputs[name], value) < 5e-5, name


def test_a_batch_of_steps_equals_single_steps(tmp_path):
    form = decoder_form(shared_student("qwen2")[0])
    sessions, _ = _sessions(form, tmp_path, plain=False)
    generator = np.random.default_rng(0)
    past = {s.name: generator.standard_normal((3, *s.shape[1:]), np.float32) for s in form.state_specs()}
    ids, positions = np.array([[5], [9], [2]]), np.array([[3], [70], [11]])
    together = _run(sessions["step"], {"input_ids": ids, "position_ids": positions, **past})
    for row in range(3):
        single = {name: value[row : row + 1] for name, value in past.items()}
        feeds = {"input_ids": ids[row : row + 1], "position_ids": positions[row : row + 1], **single}
        for name, value in _run(sessions["step"], feeds).items():
            assert worst(together[name][row : row + 1], value) < 1e-5, name


def test_few_large_nodes(tmp_path):
    form = decoder_form(shared_student("llama")[0])
    _, reports = _sessions(form, tmp_path, plain=False)
    assert reports["step"].nodes_per_layer <= 19
