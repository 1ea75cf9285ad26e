"""The twin of half precision products: either neighbour of a sum, as likely as the sum is near it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from linmu.reference.eager import DrawnHalfOps, _draw
from linmu.step.half_ops import HalfOps, half
from linmu.step.pack import decoder_form
from tests.model.students import shared_student


@pytest.fixture(scope="module")
def form():
    return decoder_form(shared_student("qwen2")[0])


def neighbours(value: float) -> tuple[float, float]:
    """The float16 numbers around a number, by numpy's own conversion and steps."""
    nearest = np.float16(value)
    if float(nearest) == value:
        return value, value
    other = np.nextafter(nearest, np.float16(np.inf if value > float(nearest) else -np.inf))
    return min(float(nearest), float(other)), max(float(nearest), float(other))


@pytest.mark.parametrize("place", [0.03, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("value", [1.0003, -3.14159, 1e-6, -7e-8, 2047.6, 60000.9, 0.1, -1.0004882])
def test_a_number_goes_to_either_neighbour_as_likely_as_it_is_near(form, value, place):
    low, high = neighbours(value)
    spread = np.linspace(-0.02, 0.02, 2001) + place  # float32 has 8,192 numbers in the gap: these are 320 of them
    x = np.unique((low + (high - low) * spread).astype(np.float32))
    drawn = DrawnHalfOps(form, ()).round_product(torch.from_numpy(x)).double().numpy()
    assert set(np.unique(drawn)) <= {low, high}
    share = ((x - low) / (high - low)).mean()
    assert abs((drawn == high).mean() - share) < 4 * (share * (1 - share) / len(x)) ** 0.5


def test_draws_are_even_and_know_nothing_of_their_neighbours():
    x = torch.from_numpy(np.random.default_rng(3).standard_normal(2**17).astype(np.float32))
    drawn = _draw(x).numpy()
    counts = np.histogram(drawn, 64, (0, 1))[0]
    assert ((counts - 2**11) ** 2 / 2**11).sum() < 63 + 5 * (2 * 63) ** 0.5  # chi squared
    ordered = _draw(torch.from_numpy(np.sort(x.numpy()))).numpy()
    for found in (drawn, ordered):
        assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 5 / 2**8.5


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 65504.0, float("inf"), float("-inf")])
def test_what_float16_holds_stays(form, value):
    assert (DrawnHalfOps(form, ()).round_product(torch.full((99,), value)) == value).all()


def test_not_a_number_stays_one_and_draws_are_repeatable(form):
    assert DrawnHalfOps(form, ()).round_product(torch.full((9,), float("nan"))).isnan().all()
    x = torch.randn(5, 77, generator=torch.Generator().manual_seed(3))
    twin = DrawnHalfOps(form, ())
    whole, parts = twin.round_product(x), [twin.round_product(x[:, i : i + 10]) for i in range(0, 77, 10)]
    assert torch.equal(whole, torch.cat(parts, 1)) and not torch.equal(whole, half(x))


def test_products_are_drawn_around_those_of_the_reference(form):
    name = "layers.1.down"
    reference, twin = HalfOps(form, [name]), DrawnHalfOps(form, [name])
    x = torch.randn(1, 31, form.weights[name]().shape[0], generator=torch.Generator().manual_seed(5))
    y = twin.multiply(x, name)
    exact = half(x).double() @ half(form.weights[name]().detach()).double()
    one_step = torch.from_numpy(np.spacing(exact.abs().numpy().astype(np.float16))).double()
    assert ((y.double() - exact).abs() <= 1.001 * one_step).all()  # 1.001: the float32 sums before
    moved = (y != reference.multiply(x, name)).double().mean()
    assert 0.1 < moved < 0.4  # a quarter: the mean distance to the nearest is a quarter of the gap
