"""Rotary embedding on packed heads, as the teachers do it (halves, not interleaved pairs), at exact angles.

Teachers multiply positions and frequencies in float32, which is wrong by several 1e-3 radians at position 100,000.
Students keep their teacher's float32 frequencies and take the exact product.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from linmu.families import Family


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., H, d] by cos, sin [..., d/2] (the first half; both halves of the teacher's tables are equal)."""
    first, second = x.chunk(2, -1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def frequency_matrix(rotary: nn.Module, family: Family) -> Tensor:
    """[P, d/2] float32 of a decoder's rotary module: angle = position_ids^T @ this.

    P is 1, or 3 for M-RoPE, whose axes own disjoint frequencies; the rest is 0.
    """
    inverse = rotary.inv_freq.float()
    if family.rope == "plain":
        return inverse[None]
    axis = torch.zeros(inverse.shape[0], dtype=torch.long, device=inverse.device)
    section = list(rotary.mrope_section)
    if family.rope == "mrope":
        axis = torch.repeat_interleave(torch.arange(3), torch.tensor(section)).to(inverse.device)
    else:
        for dim in (1, 2):
            axis[dim : section[dim] * 3 : 3] = dim
    return torch.stack([torch.where(axis == p, inverse, torch.zeros_like(inverse)) for p in range(3)])


def rope_tables(positions: Tensor, frequencies: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cos and sin [N, d/2] of positions [P, N] int64 and frequencies [P, d/2], times `factor` (yarn).

    Angles are float64: of a float32 frequency the product is exact up to position 2^29, and within 1e-6 radians up to
    2^33. The tables are then rounded to `dtype`.
    """
    # one axis owns each frequency: the sum adds zeros
    angles = (positions.double()[:, :, None] * frequencies.double()[:, None]).sum(0)
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def use_exact_angles(decoder: nn.Module, family: Family) -> None:
    """Let a decoder's rotary module give tables of exact angles; its frequencies stay what transformers makes them."""
    rotary: nn.Module = decoder.rotary_emb
    rotary.register_forward_hook(partial(_exact, family), with_kwargs=True)


@torch.no_grad()
def _exact(
    family: Family, rotary: nn.Module, args: tuple, kwargs: dict[str, Any], output: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """A hook behind the teacher's tables: the same (cos, sin) [B,S,d] in the dtype of its input x."""
    x, positions = (*args, *kwargs.values())[:2]
    rows = positions.expand(3, -1, -1) if family.rope != "plain" else positions[None]  # [P, B, S]
    place = "cpu" if x.device.type == "mps" else x.device  # which has no float64
    rows, frequencies = rows.to(place), frequency_matrix(rotary, family).to(place)
    tables = rope_tables(rows.flatten(1), frequencies, float(rotary.attention_scaling), x.dtype)
    cos, sin = (torch.cat([table, table], -1).unflatten(0, rows.shape[1:]).to(x.device) for table in tables)
    return cos, sin


def batch_tables(position_embeddings: tuple[Tensor, Tensor], batch: int) -> tuple[Tensor, Tensor]:
    """The teacher's (cos, sin) [B or 1,S,d] -> their first halves for every row [B,S,d/2]."""
    half = position_embeddings[0].shape[-1] // 2
    cos, sin = (table[..., :half].expand(batch, -1, -1) for table in position_embeddings)
    return cos, sin
