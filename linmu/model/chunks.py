"""Sequences cut into chunks of L tokens, for scans that are parallel inside a chunk (ssm.py, delta.py).

Glossary
    n           chunks
    M, r        heads that own a state, query heads per state
    c           sum of the log-decays since the chunk began, restarts left out
    segment     restarts so far inside the chunk; tokens see each other within a segment only
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Chunks:
    """A sequence in chunks, with what decays leave of a state or a token on its way; tokens past the end do nothing.

    Restarts are masks, not huge decays: a cumulative sum that holds -1e4 would lose the small decays beside it.
    """

    q: Tensor  # [B, n, M, r, L, dk]
    k: Tensor  # [B, n, M, L, dk]
    v: Tensor  # [B, n, M, L, dv]
    c: Tensor  # [B, n, M, L]
    segment: Tensor  # [B, n, 1, L]
    length: int  # tokens that there are

    @classmethod
    def cut(cls, q: Tensor, k: Tensor, v: Tensor, g: Tensor, restart: Tensor | None, chunk_size: int) -> Chunks:
        """Q [B,S,H,dk], k [B,S,M,dk], v [B,S,M,dv], g [B,S,M], restart [B,S] bool -> chunks; S >= 1."""
        length = q.shape[1]
        size = min(chunk_size, length)
        heads = k.shape[2]
        q = _in_chunks(q, size).unflatten(2, (heads, -1))  # [B, n, M, r, L, dk]
        k, v, g = (_in_chunks(x, size) for x in (k, v, g))
        segment = torch.zeros_like(g[:, :, :1], dtype=torch.long)
        if restart is not None:
            restart = _in_chunks(restart[..., None], size)  # [B, n, 1, L]
            g = g.masked_fill(restart, 0.0)
            segment = restart.long().cumsum(-1)
        return cls(q, k, v, g.cumsum(-1), segment, length)

    def decay(self, strict: bool = False) -> Tensor:
        """What is left at token t of token s, exp(c_t - c_s) [B,n,M,L,L]; 0 unless s <= t (`strict`: s < t)."""
        c, segment, size = self.c, self.segment, self.c.shape[-1]
        causal = torch.ones(size, size, dtype=torch.bool, device=c.device).tril(-1 if strict else 0)
        within = causal & (segment[..., :, None] == segment[..., None, :])  # [B, n, 1, L, L]
        return (c[..., :, None] - c[..., None, :]).masked_fill(~within, float("-inf")).exp()  # mask before exp

    @property
    def carry_in(self) -> Tensor:
        """What is left at every token of the state before the chunk [B,n,M,L]."""
        return self.c.exp() * (self.segment == 0)

    @property
    def carry_out(self) -> Tensor:
        """What is left of every token behind the chunk [B,n,M,L]."""
        return (self.c[..., -1:] - self.c).exp() * (self.segment == self.segment[..., -1:])

    def joined(self, y: Tensor) -> Tensor:
        """Y [B,n,M,r,L,dv] -> [B,S,H,dv]."""
        return y.permute(0, 1, 4, 2, 3, 5).flatten(1, 2).flatten(2, 3)[:, : self.length]

    def in_chunks(self, x: Tensor) -> Tensor:
        """X [B,S,M,...] -> [B,n,M,L,...], zeros past the end."""
        return _in_chunks(x, self.c.shape[-1])


def _in_chunks(x: Tensor, size: int) -> Tensor:
    if tail := -x.shape[1] % size:
        x = functional.pad(x, (0, 0) * (x.ndim - 2) + (0, tail))
    return x.unflatten(1, (-1, size)).transpose(2, 3)
