"""The recurrences alone: step, loop and chunks of both rules against float64 loops; long roll-outs, conv, decay."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from linmu.config import RULES
from linmu.model import ssm
from linmu.model.flex_ma import RULES as MODULES
from tests.model.reference import delta_scan, depthwise_conv, gated_scan, of_length_one

BATCH, HEADS, KEY, VALUE, CHUNK = 2, 6, 3, 5, 7
SCALE = 0.3
SCANS = {"gated": gated_scan, "gated_delta": delta_scan}
LENGTHS = [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]


every_rule = pytest.mark.parametrize("rule", RULES)


def random_scan(rule: str, length: int, owners: int, dtype=torch.float64, seed: int = 0):
    """q [B,S,H,dk], k [B,S,M,dk], v [B,S,M,dv], g [B,S,M], (beta [B,S,M],) state [B,M,dk,dv]."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    q, k, v = draw(BATCH, length, HEADS, KEY), draw(BATCH, length, owners, KEY), draw(BATCH, length, owners, VALUE)
    g, state = -draw(BATCH, length, owners).exp() * 0.3, draw(BATCH, owners, KEY, VALUE)
    if rule == "gated":
        return q, k, v, g, state
    q, k = (torch.from_numpy(of_length_one(x.double().numpy())).to(dtype) for x in (q, k))
    return q, k, v, g, draw(BATCH, length, owners).sigmoid(), state


def slow_scan(rule: str, q, k, v, *rest, restart=None, strict=False):
    """The reference of every row: heads repeated, the state emptied at restarts."""
    *controls, state = rest
    every = HEADS // k.shape[2]
    ys, states = [], []
    for row in range(BATCH):
        qr = q[row].double().numpy()
        tokens = [x[row].double().repeat_interleave(every, 1).numpy() for x in (k, v, *controls)]
        s = state[row].double().repeat_interleave(every, 0).numpy()
        cuts = [0, *(np.flatnonzero(restart[row]) if restart is not None else []), len(qr)]
        parts = []
        for n, (low, high) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            s = np.zeros_like(s) if n else s
            y, s = SCANS[rule](qr[low:high], *(x[low:high] for x in tokens), s, SCALE, strict)
            parts.append(y)
        ys.append(np.concatenate(parts))
        states.append(s[::every])
    return np.stack(ys), np.stack(states)


def assert_close(got, expected, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=0, atol=tolerance)


@every_rule
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("owners", [6, 3, 1])
@pytest.mark.parametrize("length", LENGTHS)
def test_loop_and_chunks_are_the_reference(length, owners, strict, rule):
    inputs, module = random_scan(rule, length, owners), MODULES[rule]
    expected, last = slow_scan(rule, *inputs, strict=strict)
    for y, state in (
        module.recurrent(*inputs, SCALE, strict=strict),
        module.chunked(*inputs, SCALE, chunk_size=CHUNK, strict=strict),
    ):
        assert_close(y, expected)
        assert_close(state, last)


@every_rule
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("owners", [6, 2])
@pytest.mark.parametrize("length", LENGTHS)
def test_restarts(length, owners, strict, rule):
    inputs, module = random_scan(rule, length, owners), MODULES[rule]
    restart = torch.rand(BATCH, length, generator=torch.Generator().manual_seed(3)) < 0.3
    restart[1, -1] = True
    expected, last = slow_scan(rule, *inputs, restart=restart.numpy(), strict=strict)
    for y, state in (
        module.recurrent(*inputs, SCALE, restart, strict),
        module.chunked(*inputs, SCALE, restart, CHUNK, strict),
    ):
        assert_close(y, expected)
        assert_close(state, last)


@every_rule
@pytest.mark.parametrize("owners", [6, 3])
def test_every_split_into_chunks_and_steps(owners, rule):
    length, module = 3 * CHUNK + 5, MODULES[rule]
    *tokens, state = random_scan(rule, length, owners)
    expected, last = slow_scan(rule, *tokens, state)
    for cut in range(1, length):
        first, middle = module.chunked(*(x[:, :cut] for x in tokens), state, SCALE, None, CHUNK)
        found = [first]
        for t in range(cut, length):
            y, middle = module.step(*(x[:, t] for x in tokens), middle, SCALE)
            found.append(y[:, None])
        assert_close(torch.cat(found, 1), expected)
        assert_close(middle, last)


@every_rule
def test_an_empty_piece_keeps_the_state(rule):
    *tokens, state = random_scan(rule, 0, 3)
    y, after = MODULES[rule].chunked(*tokens, state, SCALE)
    assert y.shape == (BATCH, 0, HEADS, VALUE) and torch.equal(after, state)


@pytest.mark.parametrize("owners", [6, 2])
def test_without_decay_it_is_unnormalised_causal_linear_attention(owners):
    q, k, v, g, state = random_scan("gated", 2 * CHUNK + 3, owners)
    every = HEADS // owners
    y, _ = ssm.chunked(q, k, v, torch.zeros_like(g), torch.zeros_like(state), SCALE, None, CHUNK)
    for row, head in np.ndindex(BATCH, HEADS):
        weights = SCALE * q[row, :, head] @ k[row, :, head // every].T
        assert_close(y[row, :, head], (weights.tril() @ v[row, :, head // every]).numpy())


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_inputs_are_computed_in_float32(dtype, rule):
    *inputs, state = random_scan(rule, 3 * CHUNK, 3, dtype)
    inputs.append(state.float())
    expected, last = slow_scan(rule, *inputs)
    for function in (MODULES[rule].recurrent, MODULES[rule].chunked):
        y, state = function(*inputs, SCALE)
        assert y.dtype == state.dtype == torch.float32
        assert_close(y, expected, 1e-5)
        assert_close(state, last, 1e-5)


@every_rule
def test_very_strong_decays_overflow_neither_values_nor_gradients(rule):
    leaves = random_scan(rule, 2 * CHUNK + 1, 3, torch.float32)
    leaves[3][:, ::4] = ssm.RESTART_LOG_DECAY
    leaves = [x.requires_grad_() for x in leaves]
    y, last = MODULES[rule].chunked(*leaves, SCALE, None, CHUNK)
    (y.square().sum() + last.square().sum()).backward()
    assert all(x.grad.isfinite().all() for x in leaves)
    expected, _ = slow_scan(rule, *(x.detach() for x in leaves))
    assert_close(y, expected, 2e-3)  # a cumulative sum beside -1e4 keeps 1e-3 of the small decays


@every_rule
@pytest.mark.parametrize("strict", [False, True])
def test_gradients_of_chunks_are_those_of_the_loop(strict, rule):
    inputs, module = random_scan(rule, 2 * CHUNK + 3, 3), MODULES[rule]
    restart = torch.zeros(BATCH, 2 * CHUNK + 3, dtype=torch.bool)
    restart[0, 4], restart[1, 9] = True, True
    found = []
    for function in (module.recurrent, partial(module.chunked, chunk_size=CHUNK)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        y, last = function(*leaves, SCALE, restart, strict=strict)
        (y.square().sum() + last.sin().sum()).backward()
        found.append([x.grad for x in leaves])
    for loop, chunks in zip(*found, strict=True):
        assert loop.abs().max() > 0
        assert_close(chunks, loop.numpy(), 1e-10)


UNIT = 2.0**-24  # half the distance of neighbouring float32 numbers, of their size


def test_32k_steps_stay_finite_and_round_as_independent_errors_do():
    """Every error of a long roll-out is one of exp(), of a state's three roundings a step, or of the output's sum.

    None of this depends on the order in which a CPU's kernels add: what exp() gives here is measured (a library may be
    a whole unit off, always to one side), the roundings of products and sums are IEEE's.
    """
    length, heads = 32_768, 5
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, length, heads, n, generator=generator) for n in (KEY, KEY, VALUE))
    bias = ssm.initial_dt_bias(heads, 4.0, 65536.0)
    g = ssm.log_decay(0.5 * torch.randn(1, length, heads, generator=generator), bias, torch.zeros(heads))
    start = torch.zeros(1, heads, KEY, VALUE)
    _, wide = ssm.chunked(*(x.double() for x in (q, k, v, g)), start.double(), SCALE, chunk_size=64)
    assert_close(wide, slow_last(k, v, g), 1e-8)

    state, decays = start, []
    with torch.inference_mode():
        for t in range(length):
            y, state = ssm.step(q[:, t], k[:, t], v[:, t], g[:, t], state, SCALE)
            decays.append(g[:, t].exp())
            if t >= length - 1000:  # scale * q, dk products and their sum, in any order
                terms = (SCALE * q[0, t, :, :, None].double() * state[0].double()).abs().sum(1)
                exact = (SCALE * q[0, t, :, None].double() @ state[0].double())[:, 0]
                assert ((y[0].double() - exact).abs() <= (2 * KEY + 1) * UNIT * terms).all()
    assert state.isfinite().all()

    decay = torch.cat(decays).double().numpy()  # [S, H]
    exact_decay = np.exp(g[0].double().numpy())
    assert np.abs(decay / exact_decay - 1).max() < 2 * UNIT * 1.001  # a unit in the last place, below a power of two
    rolled, variance, widest = roll_out(k, v, decay)
    error = np.linalg.norm(state[0].double().numpy() - rolled, axis=(1, 2))
    assert (error < 5 * np.sqrt(variance.sum((1, 2)))).all()
    assert (np.abs(rolled - wide[0].numpy()) <= widest).all()  # this library's exp() alone


def roll_out(k, v, decay) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The loop in float64 with given decays [S, H] and two errors of a float32 loop, each [H, dk, dv].

    The variance of what arithmetic adds: a step rounds the decayed state, the outer product and their sum; a rounding
    is off by at most UNIT of its value, evenly spread (variance UNIT**2 / 3), and decays as the state does.
    The most that decays can add which are each a unit in the last place off.
    """
    k, v = (x[0].double().numpy() for x in (k, v))
    state = np.zeros((k.shape[1], k.shape[2], v.shape[2]))
    variance, widest = np.zeros_like(state), np.zeros_like(state)
    for kt, vt, at in zip(k, v, decay[..., None, None], strict=True):
        kept, written = at * state, kt[:, :, None] * vt[:, None, :]
        state = kept + written
        variance = at**2 * variance + UNIT**2 / 3 * (kept**2 + written**2 + state**2)
        widest = at * widest + 2 * UNIT * 1.001 * np.abs(kept)
    return state, variance, widest


def slow_last(k, v, g) -> np.ndarray:
    """The state after all tokens as one sum of outer products: exp(sum of later g) k v^T."""
    k, v, g = (x[0].double().numpy() for x in (k, v, g))
    later = np.cumsum(g[::-1], 0)[::-1] - g
    return np.einsum("sh,shk,shv->hkv", np.exp(later), k, v)[None]


@pytest.mark.parametrize("taps", [2, 3, 4, 6])
@pytest.mark.parametrize("length", [1, 2, 5, 11])
def test_conv_is_the_loop_in_any_pieces(length, taps):
    generator = torch.Generator().manual_seed(taps)
    x = torch.randn(BATCH, length, 8, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(8, 1, taps, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    expected = np.stack([depthwise_conv(row.numpy(), weight.numpy(), bias.numpy()) for row in x])
    for cut in range(length + 1):
        past = torch.zeros(BATCH, 8, taps - 1, dtype=torch.float64)
        first, past = ssm.causal_conv(x[:, :cut], weight, bias, past)
        second, past = ssm.causal_conv(x[:, cut:], weight, bias, past)
        assert_close(torch.cat([first, second], 1), expected)
        kept = min(length, taps - 1)
        assert torch.equal(past[..., taps - 1 - kept :], x[:, length - kept :].mT)
        assert not past[..., : taps - 1 - kept].any()


def test_log_decay_is_delta_times_a():
    raw, bias, a_log = torch.tensor([[-3.0, 0.5, 30.0]]), torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.0, 1.0, -1.0])
    expected = [-math.exp(a) * math.log1p(math.exp(r + b)) for r, b, a in zip(raw[0], bias, a_log, strict=True)]
    assert_close(ssm.log_decay(raw, bias, a_log), [expected], 1e-5)
    narrow = ssm.log_decay(raw.bfloat16(), bias.bfloat16(), a_log.bfloat16())
    assert narrow.dtype == torch.float32
    assert_close(narrow, [expected], 1e-5)  # all these values are exact in bfloat16: nothing may be rounded on the way


@pytest.mark.parametrize(("heads", "half_lives"), [(1, [512.0]), (4, [8.0, 32.0, 128.0, 512.0])])
def test_half_lives_are_spread_from_shortest_to_longest(heads, half_lives):
    g = ssm.log_decay(torch.zeros(heads), ssm.initial_dt_bias(heads, 8.0, 512.0), torch.zeros(heads))
    np.testing.assert_allclose(-math.log(2) / g.numpy(), half_lives, rtol=1e-4)
