"""The step form rounds its recurrent state once a call, as state_precision does, and computes in float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from linmu.formats.state_precision import read_exact, store
from linmu.model import ssm
from linmu.step import decoder
from linmu.step.form import DecoderForm
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps
from tests.model.students import shared_student
from tests.step.prompts import step_positions

PRECISIONS = ("fp32", "fp16")


def form_of(precision: str, family: str = "llama", **settings) -> DecoderForm:
    return replace(decoder_form(shared_student(family, **settings)[0]), state=precision)


def random_state(form: DecoderForm) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    exact = {
        spec.name: rng.standard_normal(spec.shape).astype(np.float32)
        for spec in replace(form, state="fp32").state_specs()
    }
    exact["past.1.recurrent"][:, 1, 2] = 0  # a row of zeros
    return store(form.state_specs(), exact)


@torch.no_grad()
def one_step(form: DecoderForm, stored: dict[str, np.ndarray]) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    past = {name: torch.from_numpy(value) for name, value in stored.items()}
    fill = torch.tensor([3])
    logits, present = decoder.step(TorchOps(form), form, torch.tensor([[7]]), step_positions(form, 9), past, fill)
    return logits, {spec.name: present[spec.output].numpy() for spec in form.state_specs()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("settings", [{}, {"text_window": 5, "decay": "kv_head"}], ids=["plain", "window, kv heads"])
def test_a_step_is_the_float32_step_between_two_roundings(precision, settings) -> None:
    form, whole = (form_of(name, **settings) for name in (precision, "fp32"))
    stored = random_state(form)
    logits, present = one_step(form, stored)
    wanted, exact = one_step(whole, read_exact(form.state_specs(), stored))
    assert torch.equal(logits, wanted)
    rounded = store(form.state_specs(), exact)
    assert set(present) == set(rounded)
    for name, value in rounded.items():
        assert present[name].dtype == value.dtype, name
        np.testing.assert_array_equal(present[name], value, err_msg=name)


def test_states_that_overflow_float16_saturate() -> None:
    form = form_of("fp16")
    stored = random_state(form)
    stored["past.0.recurrent"][:] = 65504
    _, present = one_step(replace(form), stored)
    assert np.isfinite(present["past.0.recurrent"]).all()


def test_forms_survive_json_and_old_files_are_float32() -> None:
    form = form_of("fp16")
    assert DecoderForm.from_json(form.to_json(), form.weights) == form
    old = form.to_json()
    del old["state"]
    assert DecoderForm.from_json(old, form.weights) == replace(form, state="fp32")


def test_float16_swallows_what_is_smaller_than_half_a_step() -> None:
    """Why rounding a slowly forgetting state every step is not harmless: what drift measurements are for."""
    form, size = form_of("fp16"), 4
    ops = TorchOps(form)
    stored = ops.write_state(torch.full((1, 1, size, size), 1024.0), form)  # where float16 counts in ones
    key, value = torch.ones(1, 1, size), torch.full((1, 1, size), 0.4)
    for _ in range(50):
        _, new = ssm.step(key, key, value, torch.zeros(1, 1), ops.read_state(stored, form), 1.0)
        assert (new > 1024).all()
        stored = ops.write_state(new, form)
    assert (ops.read_state(stored, form) == 1024).all()
