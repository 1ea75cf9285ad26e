"""Half products: the roundings of the step form whose matrices are multiplied in float16."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.step import decoder
from linmu.step.form import is_matrix
from linmu.step.half_ops import HalfOps
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps
from tests.model.students import shared_student


def rounded(form, halves) -> HalfOps:
    ops = HalfOps(form, halves)
    for name in ops.halves:
        ops.weights[name] = ops.weights[name].half().float()
    return ops


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 6), st.integers(0, 2**32 - 1), st.floats(1e-6, 1e3))
def test_a_half_product_is_numpys(rows, inner, columns, seed, scale):
    random = np.random.default_rng(seed)
    x, y = (scale * random.standard_normal(shape).astype(np.float32) for shape in ((rows, inner), (inner, columns)))
    ops = HalfOps(decoder_form(shared_student("llama")[0]), ())
    got = ops.half_product(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    exact = x.astype(np.float16).astype(np.float64) @ y.astype(np.float16).astype(np.float64)
    with np.errstate(over="ignore"):
        assert np.array_equal(got.astype(np.float16).astype(np.float32), got, equal_nan=True)  # float16 numbers
        wanted = exact.astype(np.float16).astype(np.float64)
    finite = np.isfinite(wanted) & np.isfinite(got)
    terms = np.abs(x).astype(np.float64) @ np.abs(y)
    assert (np.abs(got - exact)[finite] <= (2.0**-11 * np.abs(exact) + 1e-6 * terms + 2.0**-24)[finite]).all()


def test_without_halves_it_is_the_float_table():
    form = decoder_form(shared_student("qwen2")[0])
    past = {spec.name: torch.zeros(spec.shape) for spec in form.state_specs()}
    with torch.no_grad():
        found = [
            decoder.step(ops, form, torch.tensor([[5]]), torch.tensor([[3]]), past, None)[0]
            for ops in (TorchOps(form), HalfOps(form, ()))
        ]
    assert torch.equal(*found)


def test_the_choice_of_matrices_counts():
    form = decoder_form(shared_student("llama")[0])
    halves = [name for name in form.weights if is_matrix(name)]
    past = {spec.name: torch.zeros(spec.shape) for spec in form.state_specs()}

    def logits(names):
        with torch.no_grad():
            return decoder.step(rounded(form, names), form, torch.tensor([[5]]), torch.tensor([[3]]), past, None)[0]

    whole, every = logits(()), logits(halves)
    assert torch.equal(every, every.half().float())  # the head's product is the last thing that happens
    assert 1e-5 < float((every - whole).abs().max() / whole.std()) < 0.05
    for name in ("layers.1.down", "layers.0.in_proj", "head"):
        assert not torch.equal(logits([other for other in halves if other != name]), every), name
