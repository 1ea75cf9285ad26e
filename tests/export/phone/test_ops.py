"""The phones' operations, run eagerly, give the step form's numbers: every family, every setting they carry."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from linmu.export.phone.ops import PhoneOps, softplus
from linmu.export.phone.weights import Buffers, program_weights
from linmu.step import decoder
from linmu.step.call_specs import window_row
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps
from tests.model.students import shared_student
from tests.step.prompts import run_student, step_positions, torch_layout, worst
from tests.tiny import FAMILY_NAMES, VISION_NAMES, tiny_inputs

SETTINGS = {
    "default": {},
    "kv_head, skip, 3 taps": {"decay": "kv_head", "skip": True, "taps": 3},
    "causal windows, one way": {"causal_windows": True, "backward": False},
    "no windows, no rope": {"local_swin": False, "rope": False, "scan": "raster"},
    "text window": {"text_window": 5},
    "sinks": {"text_window": 4, "text_sinks": 3},
    "shared": {"text_window": 4, "text_sinks": 1, "text_window_projections": "shared"},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_prefill_and_step_equal_the_step_form(family, setting):
    student, tokenizer = shared_student(family, **SETTINGS[setting])
    form = decoder_form(student)
    eager, phone = TorchOps(form), PhoneOps(form, Buffers(nn.Module(), program_weights(form)))
    kind = "two_images" if family in VISION_NAMES else "text"
    inputs = tiny_inputs(family, student, tokenizer, kind=kind)
    prompt = run_student(student, inputs, form, row=window_row(form))
    generator = torch.Generator().manual_seed(3)
    past = {spec.name: torch.randn(spec.shape, generator=generator) * 0.3 for spec in form.state_specs()}
    deepstack = None if prompt.deepstack is None else torch.from_numpy(prompt.deepstack)
    arguments = (
        form,
        torch.from_numpy(prompt.embeds),
        torch.from_numpy(prompt.positions),
        past,
        torch_layout(prompt.layout),
        deepstack,
    )
    ids, positions = torch.tensor([[7]]), step_positions(form, prompt.next_position)
    with torch.no_grad():
        for seen in (0, 1, 3, 5, 7, 11) if form.mmate.text_window else (0,):
            fill = torch.tensor([seen])
            _compare(decoder.prefill(phone, *arguments, fill), decoder.prefill(eager, *arguments, fill))
            wanted = decoder.step(eager, form, ids, positions, past, fill)
            _compare(decoder.step(phone, form, ids, positions, past, fill), wanted)


def _compare(found, wanted) -> None:
    assert worst(found[0], wanted[0]) < 3e-5
    assert found[1].keys() == wanted[1].keys()
    for name, value in wanted[1].items():
        assert worst(found[1][name], value) < 3e-5, name


def test_softplus_keeps_the_small_ends():
    x = torch.cat([torch.linspace(-60, 40, 4001), torch.tensor([-17.5, -16.7, 0.0, 88.0, -100.0])])
    exact = torch.nn.functional.softplus(x.double())
    assert float(((softplus(x) - exact).abs() / exact.clamp_min(1e-38)).max()) < 1e-6


def test_packed_weights_stand_once_and_whole():
    form = decoder_form(shared_student("smolvlm")[0])
    weights = program_weights(form)
    assert torch.equal(weights["layers.1.in_proj"].T, form.weights["layers.1.in_proj"]())
    constants = ("mean", "turn", "eps", "ones")
    stored = sum(value.numel() for name, value in weights.items() if not name.startswith(constants))
    assert stored == sum(thunk().numel() for name, thunk in form.weights.items() if name != "rope")
