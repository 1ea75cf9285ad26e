"""The delta rule's own properties: the inverse, repeated keys, zero keys, the shifted form, what a read returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from linmu.model import delta
from tests.model.test_ssm import BATCH, CHUNK, HEADS, KEY, SCALE, VALUE, assert_close, random_scan, slow_scan


def lower(length: int, seed: int = 0) -> torch.Tensor:
    """N [3, length, length], strictly lower triangular, of keys of length 1."""
    keys = torch.randn(3, length, KEY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    keys = keys / keys.norm(dim=-1, keepdim=True)
    return (keys @ keys.mT).tril(-1)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13, 63, 64])
def test_blocks_invert_a_unit_triangular_matrix(length):
    n = lower(length)
    expected = np.linalg.inv(np.eye(length) + n.numpy())
    assert_close(delta.inverse_of_unit_lower(n), expected, 1e-12)


def test_gradients_of_the_inverse():
    assert gradcheck(delta.inverse_of_unit_lower, lower(5).requires_grad_())


def test_a_repeated_key_costs_no_precision():
    """128 times the same key, full strength, no decay: powers of N reach 1e36, the inverse has two diagonals."""
    n = torch.ones(128, 128).tril(-1)
    expected = torch.eye(128) - torch.eye(128).roll(1, 0).tril(-1)
    assert torch.equal(delta.inverse_of_unit_lower(n), expected)


@pytest.mark.parametrize("chunk", [32, 64, 128])
def test_near_keys_in_float32(chunk):
    generator = torch.Generator().manual_seed(1)
    length, size = 259, 17
    key = torch.randn(size, generator=generator)
    k = delta.normalised(key + 0.3 * torch.randn(1, length, 2, size, generator=generator))
    q, v = delta.normalised(torch.randn_like(k)), torch.randn(1, length, 2, VALUE, generator=generator)
    g, beta = torch.full((1, length, 2), -1e-4), torch.full((1, length, 2), 0.98)
    state = torch.zeros(1, 2, size, VALUE)
    y, last = delta.chunked(q, k, v, g, beta, state, 1.0, None, chunk)
    wide = [x.double() for x in (q, k, v, g, beta, state)]
    exact, exact_last = delta.recurrent(*wide, 1.0)
    assert_close(y, exact.numpy(), 1e-5)
    assert_close(last, exact_last.numpy(), 1e-5)


def test_errors_of_long_roll_outs_do_not_add_up():
    """A write takes rounding errors along its key out again: 8,192 float32 steps are as near as 128 of them."""
    length, size, generator = 8192, 7, torch.Generator().manual_seed(0)
    q, k = (delta.normalised(torch.randn(1, length, 2, size, generator=generator)) for _ in range(2))
    v = torch.randn(1, length, 2, VALUE, generator=generator)
    g = torch.tensor([-1e-5, -0.1]).expand(1, length, 2)
    beta = torch.randn(1, length, 2, generator=generator).sigmoid()
    state = torch.zeros(1, 2, size, VALUE)
    exact, last = delta.chunked(*(x.double() for x in (q, k, v, g, beta, state)), 1.0, chunk_size=64)
    with torch.inference_mode():
        for y, after in (f(q, k, v, g, beta, state, 1.0) for f in (delta.recurrent, delta.chunked)):
            assert_close(y, exact.numpy(), 2e-5)
            assert_close(after, last.numpy(), 2e-5)


def test_what_was_written_last_is_read():
    """A key written again with full strength: its first value is gone, values of orthogonal keys stay."""
    k = torch.eye(KEY, dtype=torch.float64)[[0, 1, 0]][None, :, None]  # [1, 3, 1, dk]
    v = torch.randn(1, 3, 1, VALUE, dtype=torch.float64)
    zero, one = torch.zeros(1, 3, 1, dtype=torch.float64), torch.ones(1, 3, 1, dtype=torch.float64)
    start = torch.zeros(1, 1, KEY, VALUE, dtype=torch.float64)
    _, state = delta.chunked(k, k, v, zero, one, start, 1.0)
    assert_close(state[0, 0], torch.stack([v[0, 2, 0], v[0, 1, 0], torch.zeros(VALUE).double()]).numpy())


def test_a_write_moves_what_a_key_reads_towards_the_value():
    """S^T k = (1 - beta) S'^T k + beta v for keys of length 1: beta is a share, whatever the state is."""
    *tokens, state = random_scan("gated_delta", 1, HEADS, seed=2)
    q, k, v, g, beta = (x[:, 0] for x in tokens)
    k = k / k.norm(dim=-1, keepdim=True)
    _, after = delta.step(q, k, v, g, beta, state, SCALE)
    decayed = g.exp()[..., None, None] * state
    before, found = ((k[..., None, :] @ s)[..., 0, :] for s in (decayed, after))
    assert_close(found, ((1 - beta[..., None]) * before + beta[..., None] * v).numpy(), 1e-12)


@pytest.mark.parametrize("function", [delta.recurrent, delta.chunked])
def test_zero_keys_and_queries_are_harmless(function):
    """A zero key writes nothing, a zero query reads nothing, and no gradient is NaN."""
    q, k, v, g, beta, state = random_scan("gated_delta", 2 * CHUNK + 1, 3, torch.float32)
    silent = torch.zeros(1, 2 * CHUNK + 1, 1, 1).index_fill(1, torch.tensor([0, 4, CHUNK]), 1.0).bool()
    q, k = (x.masked_fill(silent, 0.0).requires_grad_() for x in (q, k))
    y, last = function(delta.normalised(q), delta.normalised(k), v, g, beta, state, SCALE)
    (y.square().sum() + last.square().sum()).backward()
    assert y.isfinite().all() and last.isfinite().all()
    assert q.grad.isfinite().all() and k.grad.isfinite().all()
    assert not y[:, [0, 4, CHUNK]].any()
    zero = torch.zeros(BATCH, 1, 3, KEY)
    _, after = function(q[:, :1] * 0, zero, v[:, :1], g[:, :1], beta[:, :1], state, SCALE)
    assert_close(after, (g[:, 0].exp()[..., None, None] * state).numpy(), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_normalised_vectors(dtype):
    x = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0], [1e-6, 0.0, 0.0]], dtype=dtype)
    y = delta.normalised(x)
    assert y.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(y.norm(dim=-1), [1.0, 0.0, 1e-3], rtol=0.08, atol=1e-12)


def test_strict_reads_are_the_plain_rule_over_shifted_tokens():
    """What a kernel without a mask computes (docs/mmate.md): k' = k of the token before, beta' too, v' = exp(g) v."""
    length = 2 * CHUNK + 3
    q, k, v, g, beta, _ = random_scan("gated_delta", length, 3)
    restart = torch.zeros(BATCH, length, dtype=torch.bool)
    restart[:, 0] = restart[0, 4] = restart[1, CHUNK + 1] = True
    zero = torch.zeros(BATCH, 3, KEY, VALUE, dtype=torch.float64)
    expected, _ = slow_scan("gated_delta", q, k, v, g, beta, zero, restart=restart.numpy(), strict=True)
    before_k, before_v, before_beta = (x.roll(1, 1) for x in (k, v, beta))
    before_k = before_k.masked_fill(restart[..., None, None], 0.0)
    y, _ = delta.chunked(q, before_k, g.exp()[..., None] * before_v, g, before_beta, zero, SCALE, restart, CHUNK)
    assert_close(y, expected)
    assert not y[restart].any()
