"""The gated linear recurrence of Flex-MA: one step, the loop of steps, and the chunked form. Pure functions.

Glossary (code = paper = shape)
    q, k, v     C, B, x of Mamba-2's duality             [B, S, H, dk], [B, S, M, dk], [B, S, M, dv]
    g           Delta * A, the log-decay, <= 0           [B, S, M]
    state       S_t = exp(g_t) S_{t-1} + k_t v_t^T       [B, M, dk, dv], float32 or float64
    y           scale * S_t^T q_t                        [B, S, H, dv]
    strict      y is scale * (exp(g_t) S_{t-1})^T q_t: a token does not see itself
    restart     the state is dropped before this token   [B, S] bool
    M           heads that own a state: H (one decay per query head) or G (one per key/value head); r = H / M
The rule is "gated" of ONNX's LinearAttention (opset 27). There is no Delta factor on the write (mmate.md, Flex-MA 4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from linmu.model.chunks import Chunks

Step = Callable[..., tuple[Tensor, Tensor]]

RESTART_LOG_DECAY = -1e4  # exp() of it is exactly 0 in float32: how graphs without a restart input restart


def wide(x: Tensor) -> Tensor:
    """X in float32, or float64 where it is."""
    return x if x.dtype == torch.float64 else x.float()


def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """One token: q [B,H,dk], k [B,M,dk], v [B,M,dv], g [B,M], state [B,M,dk,dv] -> y [B,H,dv], state."""
    q, k, v, g = wide(q), wide(k), wide(v), wide(g)
    state = g.exp()[..., None, None] * state + k[..., :, None] * v[..., None, :]
    return read(q, state, scale), state


def read(q: Tensor, state: Tensor, scale: float) -> Tensor:
    """Scale * S^T q: q [B,H,dk], state [B,M,dk,dv] -> [B,H,dv]."""
    grouped = q.unflatten(1, (state.shape[1], -1))  # [B, M, r, dk]
    return (scale * grouped @ state).flatten(1, 2)


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    state: Tensor,
    scale: float,
    restart: Tensor | None = None,
    strict: bool = False,
) -> tuple[Tensor, Tensor]:
    """The loop of `step` over S tokens (shapes in the glossary) -> y [B,S,H,dv], state [B,M,dk,dv]."""
    return loop(step, (q, k, v, g), state, scale, restart, strict)


def loop(
    step: Step, tokens: tuple[Tensor, ...], state: Tensor, scale: float, restart: Tensor | None, strict: bool
) -> tuple[Tensor, Tensor]:
    """A rule's step over S tokens: q, k, v and controls [B,S,...] -> y [B,S,H,dv], state [B,M,dk,dv]."""
    outputs = []
    for t in range(tokens[0].shape[1]):
        if restart is not None:
            state = torch.where(restart[:, t, None, None, None], torch.zeros_like(state), state)
        q, k, v, *controls = (x[:, t] for x in tokens)
        y, new = step(q, k, v, *controls, state, scale)
        if strict:  # read before the write
            y, _ = step(q, torch.zeros_like(k), v, *controls, state, scale)
        outputs.append(y)
        state = new
    if not outputs:
        q, _, v, *_ = tokens
        return wide(v).new_zeros(q.shape[0], 0, q.shape[2], v.shape[3]), state
    return torch.stack(outputs, 1), state


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    state: Tensor,
    scale: float,
    restart: Tensor | None = None,
    chunk_size: int = 128,
    strict: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same function in chunks of L tokens: cost linear in S, parallel inside a chunk (mmate.md, chunked form).

    Shapes as in the glossary -> y [B,S,H,dv], state [B,M,dk,dv]. `strict` is a mask: a token's own term is never
    summed, so that what has seen nothing is exactly 0.
    """
    if q.shape[1] == 0:
        return recurrent(q, k, v, g, state, scale, restart)
    q, k, v, g = wide(q), wide(k), wide(v), wide(g)
    cut = Chunks.cut(q, k, v, g, restart, chunk_size)
    scores = (cut.q @ cut.k[:, :, :, None].mT) * cut.decay(strict)[:, :, :, None]  # [B, n, M, r, L, L]
    y = scores @ cut.v[:, :, :, None]  # [B, n, M, r, L, dv]
    carry_in = cut.carry_in
    through = carry_in[..., -1, None, None]  # [B, n, M, 1, 1]
    inject = (cut.k * cut.carry_out[..., None]).mT @ cut.v  # [B, n, M, dk, dv]
    before = []
    for i in range(cut.k.shape[1]):
        before.append(state)
        state = through[:, i] * state + inject[:, i]
    y = y + carry_in[:, :, :, None, :, None] * (cut.q @ torch.stack(before, 1)[:, :, :, None])
    return scale * cut.joined(y), state


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """Depthwise causal conv: x [B,S,C], weight [C,1,K], bias [C], past [B,C,K-1] -> y [B,S,C], present [B,C,K-1].

    Same function as ONNX's CausalConvWithState (opset 27) without activation.
    """
    joined = torch.cat([past.to(x.dtype), x.mT], -1)  # [B, C, K-1+S]
    y = functional.conv1d(joined, weight, bias, groups=weight.shape[0]) if x.shape[1] else x.mT
    return y.mT, joined[..., joined.shape[-1] - past.shape[-1] :]


def log_decay(raw: Tensor, dt_bias: Tensor, a_log: Tensor) -> Tensor:
    """G = Delta * A, Delta = softplus(raw + dt_bias), A = -exp(a_log): raw [..., M] -> [..., M], float32 at least."""
    return -wide(a_log).exp() * functional.softplus(wide(raw) + dt_bias)


def initial_dt_bias(heads: int, shortest: float, longest: float) -> Tensor:
    """dt_bias [M] so that, with A = -1, half-lives are spread geometrically from `shortest` to `longest` tokens."""
    position = torch.linspace(0, 1, heads, dtype=torch.float64) if heads > 1 else torch.ones(1, dtype=torch.float64)
    half_life = shortest * (longest / shortest) ** position
    return dt_bias_of_rates(torch.log(torch.tensor(2.0, dtype=torch.float64)) / half_life)


def dt_bias_of_rates(rates: Tensor) -> Tensor:
    """dt_bias [M] that makes heads decay by exp(-rate) a token, with A = -1: the inverse of softplus."""
    return rates.double().expm1().log().float()
