"""The gated delta rule of Flex-MA: what a key already says is corrected, not added to. Step, loop, chunks; pure.

Glossary (as in ssm.py, and)
    q, k        of length at most 1 (`normalised`)                             [B, S, H, dk], [B, S, M, dk]
    beta        write strength, 0 to 1                                         [B, S, M]
    state       S_t = S' + beta_t k_t (v_t - S'^T k_t)^T, S' = exp(g_t) S_{t-1}  [B, M, dk, dv], float32 or float64
    y           scale * S_t^T q_t; strict: scale * S'^T q_t                    [B, S, H, dv]
    e           what is written at k_t: beta_t (v_t - S'^T k_t)                [B, n, M, L, dv]
Source: Gated Delta Networks (arXiv 2412.06464). The rule is "gated_delta" of ONNX Runtime's LinearAttention.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from linmu.model import ssm
from linmu.model.chunks import Chunks
from linmu.model.ssm import wide

EPS = 1e-6  # of a squared length: a zero vector stays 0, with a finite gradient


def normalised(x: Tensor) -> Tensor:
    """X [..., d] divided by sqrt(|x|^2 + EPS), in float32 or wider: of length 1, or shorter where x is tiny."""
    x = wide(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)


def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, scale: float):
    """One token: q [B,H,dk], k [B,M,dk], v [B,M,dv], g and beta [B,M], state [B,M,dk,dv] -> y [B,H,dv], state."""
    q, k, v, g, beta = (wide(x) for x in (q, k, v, g, beta))
    state = g.exp()[..., None, None] * state
    error = beta[..., None] * (v - (k[..., None, :] @ state)[..., 0, :])  # [B, M, dv]
    state = state + k[..., :, None] * error[..., None, :]
    return ssm.read(q, state, scale), state


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    scale: float,
    restart: Tensor | None = None,
    strict: bool = False,
) -> tuple[Tensor, Tensor]:
    """The loop of `step` over S tokens (shapes in the glossary) -> y [B,S,H,dv], state [B,M,dk,dv]."""
    return ssm.loop(step, (q, k, v, g, beta), state, scale, restart, strict)


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    scale: float,
    restart: Tensor | None = None,
    chunk_size: int = 128,
    strict: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same function in chunks of L tokens, matrix products only: cost linear in S, parallel inside a chunk.

    Shapes as in the glossary -> y [B,S,H,dv], state [B,M,dk,dv]. Inside a chunk e solves (I + N) e = beta (V - K S),
    N strictly lower triangular. Restarts and `strict` are masks, as in ssm.chunked.
    """
    if q.shape[1] == 0:
        return recurrent(q, k, v, g, beta, state, scale, restart)
    q, k, v, g, beta = (wide(x) for x in (q, k, v, g, beta))
    cut = Chunks.cut(q, k, v, g, restart, chunk_size)
    decay, carry_in = cut.decay(), cut.carry_in  # [B, n, M, L, L], [B, n, M, L]
    before = decay.tril(-1)
    weighted = cut.in_chunks(beta)[..., None] * cut.k  # [B, n, M, L, dk]
    inverse = inverse_of_unit_lower((weighted @ cut.k.mT) * before)  # [B, n, M, L, L]
    given = inverse @ (cut.in_chunks(beta)[..., None] * cut.v)  # e of an empty state [B, n, M, L, dv]
    erase = inverse @ (weighted * carry_in[..., None])  # [B, n, M, L, dk]
    last = (cut.k * cut.carry_out[..., None]).mT  # [B, n, M, dk, L]
    through = carry_in[..., -1, None, None]  # [B, n, M, 1, 1]
    states, errors = [], []
    for i in range(cut.k.shape[1]):
        states.append(state)
        errors.append(given[:, i] - erase[:, i] @ state)
        state = through[:, i] * state + last[:, i] @ errors[-1]
    scores = (cut.q @ cut.k[:, :, :, None].mT) * (before if strict else decay)[:, :, :, None]  # [B, n, M, r, L, L]
    y = scores @ torch.stack(errors, 1)[:, :, :, None]  # [B, n, M, r, L, dv]
    y = y + carry_in[:, :, :, None, :, None] * (cut.q @ torch.stack(states, 1)[:, :, :, None])
    return scale * cut.joined(y), state


def inverse_of_unit_lower(n: Tensor) -> Tensor:
    """(I + N)^-1 of strictly lower triangular N [..., L, L], in ceil(log2(L)) rounds of two products.

    Blocks double: [[A, 0], [C, B]]^-1 = [[A^-1, 0], [-B^-1 C A^-1, B^-1]]. Every number on the way is one of an
    inverse, at most 1 for keys no longer than 1. Powers of N, as in (I - N)(I + N^2)(I + N^4)..., are not: of one key
    repeated 128 times they reach C(126, 63) = 6e36, and nothing is left of float32.
    """
    length = n.shape[-1]
    size = 1 << (length - 1).bit_length()
    n = functional.pad(n, (0, size - length, 0, size - length))
    inverse = n.new_ones(*n.shape[:-1], 1, 1)  # [..., L / block, block, block]
    block = 1
    while block < size:
        corner = n.unflatten(-1, (-1, 2 * block)).unflatten(-3, (-1, 2 * block))  # [..., pair, row, pair, column]
        corner = corner.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)[..., block:, :block]  # [..., pairs, block, block]
        first, second = inverse[..., ::2, :, :], inverse[..., 1::2, :, :]
        upper = functional.pad(first, (0, block))
        inverse = torch.cat([upper, torch.cat([-(second @ corner @ first), second], -1)], -2)
        block *= 2
    return inverse[..., 0, :length, :length]
