"""Seed one M-MATE block from the self-attention it replaces, and measure how far it is from it.

Inherited: q, k, v (and their norms) for both branches, o_proj. Chosen from the teacher's activations on a probe
prompt: the per-head norm scales (the block's output then has the teacher's RMS, mmate.md Flex-MA 8) and the gates.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from linmu.model.attention import MMateAttention
from linmu.model.mmate import MMateBlock


@dataclass(frozen=True)
class LayerReport:
    """Distance of an untrained block from its teacher, given the teacher's own inputs.

    nmse: squared error over the teacher's squared output; cosine: mean per-token cosine; rms_ratio: student / teacher.
    """

    layer: int
    nmse: float
    cosine: float
    rms_ratio: float


def inherit(block: MMateAttention, attention: nn.Module) -> None:
    """Move the teacher's projections into Flex-MA, copy them into Local-Swin; no other copy is made."""
    dims, like = block.dims, attention.q_proj.weight
    block.to_empty(device=like.device)
    block.to(dtype=like.dtype)
    block.seed()
    for name in ("q_proj", "k_proj", "v_proj"):
        linear = getattr(attention, name)
        setattr(block.flex, name, linear)
        if block.swin is not None:
            setattr(block.swin, name, copy.deepcopy(linear))
    if dims.qk_norm:
        for name in ("q_norm", "k_norm"):
            for branch in filter(None, (block.flex, block.swin)):
                getattr(branch, name).weight = nn.Parameter(getattr(attention, name).weight.detach().clone())
    block.o_proj = attention.o_proj


@torch.no_grad()
def choose_scales(
    block: MMateAttention,
    u: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    heads_out: Tensor,
    target: Tensor,
    valid: Tensor | None,
    layout: dict[str, Tensor] | None,
) -> LayerReport:
    """Set norm scales and gates from one probe; returns the distance that is left.

    u [B,S,D] the attention's input, heads_out [B,S,H*d] the teacher's per-head output, target [B,S,D] after W_O.
    """
    rms = heads_out.float().unflatten(-1, (block.dims.heads, -1)).square().mean((0, 1, 3)).sqrt()  # [H]
    for direction in filter(None, (block.scan_forward, block.scan_backward)):
        direction.norm.weight.copy_(rms[:, None].expand_as(direction.norm.weight))
    output, _ = MMateBlock.forward(block, u, position_embeddings, None, valid, layout)
    if layout is not None and block.gate_forward is not None and block.gate_backward is not None:
        vision = layout["vision"].view(u.shape[:2])
        ratio = _rms(target[vision]) / max(_rms(output[vision]), 1e-12)
        opening = min(max(0.5 * ratio, 0.05), 0.95)
        for gate in (block.gate_forward, block.gate_backward):
            gate.bias.fill_(math.log(opening / (1 - opening)))
        output, _ = MMateBlock.forward(block, u, position_embeddings, None, valid, layout)
    return measure(block.layer_idx, output, target)


def measure(layer: int, output: Tensor, target: Tensor) -> LayerReport:
    """Distance of output from target, both [B,S,D]."""
    output, target = output.float(), target.float()
    return LayerReport(
        layer=layer,
        nmse=float((output - target).square().sum() / target.square().sum()),
        cosine=float(nn.functional.cosine_similarity(output, target, dim=-1).mean()),
        rms_ratio=_rms(output) / _rms(target),
    )


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())
