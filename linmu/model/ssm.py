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

import torch
from torch import Tensor
from torch.nn import functional

RESTART_LOG_DECAY = -1e4  # exp() of it is exactly 0 in float32: how graphs without a restart input restart


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """One token: q [B,H,dk], k [B,M,dk], v [B,M,dv], g [B,M], state [B,M,dk,dv] -> y [B,H,dv], state."""
    q, k, v, g = _wide(q), _wide(k), _wide(v), _wide(g)
    state = g.exp()[..., None, None] * state + k[..., :, None] * v[..., None, :]
    grouped = q.unflatten(1, (k.shape[1], -1))  # [B, M, r, dk]
    return (scale * grouped @ state).flatten(1, 2), state


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
    outputs = []
    for t in range(q.shape[1]):
        if restart is not None:
            state = torch.where(restart[:, t, None, None, None], torch.zeros_like(state), state)
        y, new = step(q[:, t], k[:, t], v[:, t], g[:, t], state, scale)
        if strict:  # read before the write
            y, _ = step(q[:, t], torch.zeros_like(k[:, t]), v[:, t], g[:, t], state, scale)
        outputs.append(y)
        state = new
    if not outputs:
        return _wide(v).new_zeros(q.shape[0], 0, q.shape[2], v.shape[3]), state
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

    Shapes as in the glossary -> y [B,S,H,dv], state [B,M,dk,dv]. Restarts are masks, not huge decays: a cumulative
    sum that holds -1e4 would lose the small decays beside it. `strict` is a mask too: a token's own term is never
    summed, so that what has seen nothing is exactly 0.
    """
    length = q.shape[1]
    if length == 0:
        return recurrent(q, k, v, g, state, scale, restart)
    q, k, v, g = _wide(q), _wide(k), _wide(v), _wide(g)
    size = min(chunk_size, length)
    if tail := -length % size:  # tokens past the end: decay 1, no write
        q, k, v = (functional.pad(x, (0, 0, 0, 0, 0, tail)) for x in (q, k, v))
        g = functional.pad(g, (0, 0, 0, tail))
        restart = None if restart is None else functional.pad(restart, (0, tail))
    heads = k.shape[2]
    q = q.unflatten(1, (-1, size)).unflatten(3, (heads, -1)).permute(0, 1, 3, 4, 2, 5)  # [B, n, M, r, L, dk]
    k, v = (x.unflatten(1, (-1, size)).transpose(2, 3) for x in (k, v))  # [B, n, M, L, d]
    g = g.unflatten(1, (-1, size)).transpose(2, 3)  # [B, n, M, L]
    segment = torch.zeros_like(g[:, :, :1], dtype=torch.long)  # restarts so far inside the chunk, [B, n, 1, L]
    if restart is not None:
        restart = restart.unflatten(1, (-1, size))[:, :, None]
        g = g.masked_fill(restart, 0.0)
        segment = restart.long().cumsum(-1)
    c = g.cumsum(-1)
    causal = torch.ones(size, size, dtype=torch.bool, device=q.device).tril(-1 if strict else 0)
    within = causal & (segment[..., :, None] == segment[..., None, :])  # [B, n, 1, L, L]
    decay = (c[..., :, None] - c[..., None, :]).masked_fill(~within, float("-inf")).exp()  # mask before exp
    scores = (q @ k[:, :, :, None].mT) * decay[:, :, :, None]  # [B, n, M, r, L, L]
    y = scores @ v[:, :, :, None]  # [B, n, M, r, L, dv]
    carry_in = c.exp() * (segment == 0)
    carry_out = (c[..., -1:] - c).exp() * (segment == segment[..., -1:])
    through = carry_in[..., -1, None, None]  # [B, n, M, 1, 1]
    inject = (k * carry_out[..., None]).mT @ v  # [B, n, M, dk, dv]
    before = []
    for i in range(q.shape[1]):
        before.append(state)
        state = through[:, i] * state + inject[:, i]
    y = y + carry_in[:, :, :, None, :, None] * (q @ torch.stack(before, 1)[:, :, :, None])
    y = y.permute(0, 1, 4, 2, 3, 5).flatten(1, 2).flatten(2, 3)  # [B, n*L, H, dv]
    return scale * y[:, :length], state


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """Depthwise causal conv: x [B,S,C], weight [C,1,K], bias [C], past [B,C,K-1] -> y [B,S,C], present [B,C,K-1].

    Same function as ONNX's CausalConvWithState (opset 27) without activation.
    """
    joined = torch.cat([past.to(x.dtype), x.mT], -1)  # [B, C, K-1+S]
    y = functional.conv1d(joined, weight, bias, groups=weight.shape[0]) if x.shape[1] else x.mT
    return y.mT, joined[..., joined.shape[-1] - past.shape[-1] :]


def log_decay(raw: Tensor, dt_bias: Tensor, a_log: Tensor) -> Tensor:
    """G = Delta * A, Delta = softplus(raw + dt_bias), A = -exp(a_log): raw [..., M] -> [..., M], float32 at least."""
    return -_wide(a_log).exp() * functional.softplus(_wide(raw) + dt_bias)


def initial_dt_bias(heads: int, shortest: float, longest: float) -> Tensor:
    """dt_bias [M] so that, with A = -1, half-lives are spread geometrically from `shortest` to `longest` tokens."""
    position = torch.linspace(0, 1, heads, dtype=torch.float64) if heads > 1 else torch.ones(1, dtype=torch.float64)
    half_life = shortest * (longest / shortest) ** position
    return dt_bias_of_rates(torch.log(torch.tensor(2.0, dtype=torch.float64)) / half_life)


def dt_bias_of_rates(rates: Tensor) -> Tensor:
    """dt_bias [M] that makes heads decay by exp(-rate) a token, with A = -1: the inverse of softplus."""
    return rates.double().expm1().log().float()
