"""The step form takes the student's weights unchanged and gives the student's logits and states."""

from __future__ import annotations

import pytest
import torch

from linmu.errors import InputError
from linmu.step import decoder
from linmu.step.form import DecoderForm
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps
from tests.model.students import shared_student
from tests.step.prompts import run_student, step_positions, torch_layout, worst
from tests.tiny import FAMILY_NAMES, VISION_NAMES, tiny_inputs

SETTINGS = {
    "default": {},
    "kv_head and skip": {"decay": "kv_head", "skip": True, "taps": 3},
    "text window": {"text_window": 5},
    "sinks": {"text_window": 4, "text_sinks": 3},
    "shared": {"text_window": 4, "text_sinks": 1, "text_window_projections": "shared"},
    "no backward": {"backward": False, "scan": "raster"},
    "no windows": {"local_swin": False, "rope": False},
    "causal windows": {"causal_windows": True, "window_rows": 2, "window_columns": 3},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_prefill_and_step_equal_the_student(family, setting):
    student, tokenizer = shared_student(family, **SETTINGS[setting])
    form = decoder_form(student)
    ops = TorchOps(form)
    kind = "two_images" if family in VISION_NAMES else "text"
    prompt = run_student(student, tiny_inputs(family, student, tokenizer, kind=kind), form)
    past = {spec.name: torch.zeros(spec.shape) for spec in form.state_specs()}
    deepstack = None if prompt.deepstack is None else torch.from_numpy(prompt.deepstack)
    fill = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        logits, present = decoder.prefill(
            ops,
            form,
            torch.from_numpy(prompt.embeds),
            torch.from_numpy(prompt.positions),
            past,
            torch_layout(prompt.layout),
            deepstack,
            fill,
        )
    cache = prompt.output.past_key_values
    assert worst(logits[0, 0], prompt.output.logits[0, -1]) < 1e-5
    _assert_states(present, cache)
    tokens = prompt.embeds.shape[1]
    for count, token in enumerate((7, 11, 7)):
        positions = step_positions(form, prompt.next_position + count)
        past = {name.replace("present", "past"): value for name, value in present.items()}
        with torch.no_grad():
            output = student(input_ids=torch.tensor([[token]]), past_key_values=cache, position_ids=positions)
            fill = torch.tensor([tokens + count])
            logits, present = decoder.step(ops, form, torch.tensor([[token]]), positions, past, fill)
        assert worst(logits[0, 0], output.logits[0, -1]) < 1e-5
    _assert_states(present, cache)


def _assert_states(present, cache) -> None:
    for name, value in present.items():
        _, layer, kind = name.split(".")
        expected = cache.layers[int(layer)].state[kind]
        assert worst(value, expected.mT if kind == "conv" else expected) < 1e-5, name


@pytest.mark.parametrize("family", ("qwen3_vl", "llama"))
def test_a_form_survives_json(family):
    student, _ = shared_student(family, **SETTINGS["text window"])
    form = decoder_form(student)
    assert DecoderForm.from_json(form.to_json(), form.weights) == form


def test_students_of_the_delta_rule_have_no_step_form():
    student, _ = shared_student("llama", rule="gated_delta")
    with pytest.raises(InputError, match="cannot be calibrated or exported yet; got rule gated_delta"):
        decoder_form(student)


def test_packed_weights_are_the_students():
    student, _ = shared_student("qwen2")
    form = decoder_form(student)
    block = student.get_decoder().layers[1].self_attn
    packed = form.weights["layers.1.in_proj"]()
    q = form.heads * form.head_dim
    assert torch.equal(packed[:, :q], block.flex.q_proj.weight.T)
    assert torch.equal(packed[:, form.channels :], block.scan_forward.dt_proj.weight.T)
    assert form.weights["token_embedding"]().data_ptr() == student.get_input_embeddings().weight.data_ptr()
