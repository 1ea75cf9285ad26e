"""Every loss against a plain float64 computation, token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.distill.losses import FLOOR, TopK, ce_sum, kl_sum, nmse_sum, token_scale, top_k

B, S, D, N, V = 3, 5, 7, 4, 11


def rand(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(row):
    exps = [math.exp(x - max(row)) for x in row]
    return [x / sum(exps) for x in exps]


def test_nmse_token_by_token():
    student, target = rand(B, S, D, seed=1), rand(B, S, D, seed=2)
    target[0, 2] *= 1e3  # a huge activation
    target[1, 4] *= 1e-4  # a token that attention leaves alone
    valid = torch.ones(B, S, dtype=torch.bool)
    valid[1, :2] = False
    target[1, :2] = 77.0  # padding must not matter
    expected, s, t = 0.0, student.double().numpy(), target.double().numpy()
    for b in range(B):
        places = [i for i in range(S) if valid[b, i]]
        energy = {i: float((t[b, i] ** 2).sum()) for i in places}
        typical = math.exp(sum(math.log(energy[i]) for i in places) / len(places))
        for i in places:
            expected += float(((s[b, i] - t[b, i]) ** 2).sum()) / max(energy[i], FLOOR * typical)
    found = nmse_sum(student, target, token_scale(target, valid))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert nmse_sum(target, target, token_scale(target, valid)).item() == 0
    assert nmse_sum(0 * target, target, token_scale(target, valid)).item() <= valid.sum()


def test_padding_alone_makes_no_nan():
    valid = torch.zeros(B, S, dtype=torch.bool)
    assert nmse_sum(rand(B, S, D), rand(B, S, D, seed=1), token_scale(rand(B, S, D, seed=1), valid)).item() == 0


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_row_by_row(temperature):
    student, teacher = rand(N, V, seed=3, scale=3), rand(N, V, seed=4, scale=3)
    expected = 0.0
    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        q, p = softmax([x / temperature for x in s]), softmax([x / temperature for x in t])
        expected += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert kl_sum(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-5)
    assert kl_sum(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_of_the_largest_logits_lumps_the_rest(temperature):
    student, teacher, k = rand(N, V, seed=3, scale=3), rand(N, V, seed=4, scale=3), 4
    expected = 0.0
    for s, t in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        q, p = np.array(softmax(list(s / temperature))), np.array(softmax(list(t / temperature)))
        best = np.argsort(-t)[:k]
        pairs = [*zip(p[best], q[best], strict=True), (1 - p[best].sum(), 1 - q[best].sum())]
        expected += temperature**2 * sum(a * math.log(a / b) for a, b in pairs)
    found = kl_sum(student, top_k(teacher, k, temperature), temperature).item()
    assert found == pytest.approx(expected, rel=1e-4)
    assert found <= kl_sum(student, teacher, temperature).item()


def test_all_logits_as_largest_ones_give_the_full_kl():
    student, teacher = rand(N, V, seed=3), rand(N, V, seed=4)
    full = kl_sum(student, teacher, 2.0).item()
    assert kl_sum(student, top_k(teacher, V + 5, 2.0), 2.0).item() == pytest.approx(full, abs=2e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, V), st.floats(0.5, 4), st.integers(0, 1000))
def test_kl_of_the_largest_logits_is_a_finite_lower_bound_with_finite_gradients(k, temperature, seed):
    student = rand(N, V, seed=seed, scale=20).requires_grad_()
    teacher = rand(N, V, seed=seed + 1, scale=20)
    found = kl_sum(student, top_k(teacher, k, temperature), temperature)
    found.backward()
    full = kl_sum(student, teacher, temperature).item()
    assert -1e-3 <= found.item() <= full * (1 + 1e-3) + 1e-3
    assert torch.isfinite(student.grad).all()


def test_the_gradient_of_the_tail_pushes_mass_out_of_the_rest():
    teacher = torch.zeros(1, V)
    teacher[0, 0] = 9.0
    student = torch.zeros(1, V, requires_grad=True)
    kl_sum(student, top_k(teacher, 1, 1.0)).backward()
    assert student.grad[0, 0] < 0 and (student.grad[0, 1:] > 0).all()


def test_ce_row_by_row():
    logits, labels = rand(N, V, seed=5), torch.tensor([3, 0, 10, 7])
    expected = -sum(math.log(softmax(row)[label]) for row, label in zip(logits.tolist(), labels, strict=True))
    assert ce_sum(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_narrow_inputs_are_widened():
    student, teacher = rand(N, V, seed=3).bfloat16(), rand(N, V, seed=4).bfloat16()
    assert kl_sum(student, teacher).dtype == torch.float32
    assert kl_sum(student, teacher).item() == pytest.approx(kl_sum(student.double(), teacher.double()).item(), rel=1e-5)
    empty = TopK(torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.long), torch.zeros(0))
    assert kl_sum(torch.zeros(0, V), empty).item() == 0
