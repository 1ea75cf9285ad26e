"""Rotary embedding on packed heads, as the teachers do it (halves, not interleaved pairs)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., H, d] by cos, sin [..., d/2] (the first half; both halves of the teacher's tables are equal)."""
    first, second = x.chunk(2, -1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def half_tables(position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The teacher's (cos, sin) [B,S,d] -> their first halves [B,S,d/2]."""
    cos, sin = position_embeddings
    half = cos.shape[-1] // 2
    return cos[..., :half], sin[..., :half]
