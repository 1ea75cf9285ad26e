"""The text window is dense attention under a mask of sinks and a band; its state is one ring, however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.model.sliding import sliding_attention
from tests.model.reference import softmax

HEADS, GROUPS, DIM, SCALE = 6, 2, 5, 0.4


def tokens(length: int, seed: int, batch: int = 2):
    """Random q, k and v of a batch, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, length, heads, DIM, generator=generator, dtype=torch.float64)
        for heads in (HEADS, GROUPS, GROUPS)
    ]


def dense(q, k, v, skipped, sinks: int, window: int) -> np.ndarray:
    """Query by query: the first `sinks` tokens behind `skipped` [B] of padding, and the last `window`."""
    y = np.zeros(q.shape)
    for row, i, head in np.ndindex(*q.shape[:3]):
        pad = int(skipped[row])
        keys = [j for j in range(pad, i + 1) if j > i - window or j < pad + sinks]
        if keys:
            share = softmax(SCALE * (k[row, keys, head // (HEADS // GROUPS)] @ q[row, i, head]).numpy())
            y[row, i, head] = share @ v[row, keys, head // (HEADS // GROUPS)].numpy()
    return y


def run(q, k, v, valid, sinks: int, window: int, cuts: list[int]):
    """The function under test, piece by piece."""
    empty = q.new_zeros(len(q), GROUPS, sinks + window, DIM)
    past, outputs = (empty, empty, torch.zeros(len(q), dtype=torch.long)), []
    edges = [0, *cuts, q.shape[1]]
    for low, high in zip(edges, edges[1:], strict=False):
        if low < high:
            part = slice(low, high)
            y, past = sliding_attention(q[:, part], k[:, part], v[:, part], valid[:, part], past, sinks, SCALE)
            outputs.append(y)
    return torch.cat(outputs, 1), past


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 19), st.integers(1, 7), st.integers(0, 4), st.lists(st.integers(0, 19), max_size=4), st.data())
def test_any_cut_is_the_dense_mask(length, window, sinks, cuts, data):
    q, k, v = tokens(length, length)
    skipped = torch.tensor([0, data.draw(st.integers(0, length))])
    valid = torch.arange(length) >= skipped[:, None]
    y, past = run(q, k, v, valid, sinks, window, sorted(min(cut, length) for cut in cuts))
    expected = dense(q, k, v, skipped, sinks, window)
    assert y.isfinite().all()
    np.testing.assert_allclose(y[valid].numpy(), expected[valid.numpy()], rtol=0, atol=1e-12)
    for row in range(2):
        count = length - int(skipped[row])
        assert past[2][row] == count
        for number in range(count):
            kept = number < sinks or number >= count - window
            slot = number if number < sinks else sinks + (number - sinks) % window
            if kept:
                assert torch.equal(past[0][row, :, slot], k[row, int(skipped[row]) + number])
                assert torch.equal(past[1][row, :, slot], v[row, int(skipped[row]) + number])


def test_slots_that_no_token_has_reached_stay_zero():
    q, k, v = tokens(3, 1)
    _, past = run(q, k, v, torch.ones(2, 3, dtype=torch.bool), 2, 4, [1])
    assert not past[0][:, :, 3:].any() and not past[1][:, :, 3:].any()


def test_gradients():
    q, k, v = (x[:, :, :2].requires_grad_() for x in tokens(7, 2, batch=1))
    empty = q.new_zeros(1, 2, 5, DIM)
    past = (empty, empty, torch.zeros(1, dtype=torch.long))
    valid = torch.ones(1, 7, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda *x: sliding_attention(*x, valid, past, 2, SCALE)[0], (q, k, v))


@pytest.mark.parametrize("sinks", [0, 3])
def test_a_wide_window_is_causal_attention(sinks):
    q, k, v = tokens(11, 3)
    y, _ = run(q, k, v, torch.ones(2, 11, dtype=torch.bool), sinks, 16, [4])
    expected = dense(q, k, v, torch.zeros(2), 0, 11)
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-12)
