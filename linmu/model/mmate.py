"""The M-MATE block: Flex-MA and Local-Swin in the place of a decoder layer's self-attention (mmate.md).

Glossary
    u           block input after the layer's input norm             [B, S, D]
    g_f, g_b    gates of the two scan directions, per token and head  [B, S, H]; 1 and 0 on text
    alpha       share of Flex-MA against Local-Swin                   [B, S, H]; 1 on text (unless text_window)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from linmu.config import MMateConfig
from linmu.layout.types import SCHEDULES, SHIFTS
from linmu.model.flex_ma import Direction, gather_rows
from linmu.model.local_swin import windowed_attention
from linmu.model.rotary import batch_tables, rotate
from linmu.model.sliding import sliding_attention


@dataclass(frozen=True)
class AttentionSizes:
    """Sizes of one decoder layer's attention, with the biases and norms that its teacher has."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    qk_norm_eps: float = 1e-6


class RMSNorm(nn.Module):
    """RMSNorm over the last axis, in float32 or wider (the teacher's q_norm and k_norm)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """X [..., size] -> the same shape and dtype."""
        wide = x if x.dtype == torch.float64 else x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Projections(nn.Module):
    """q, k, v of one branch with the teacher's shapes, biases and norms."""

    def __init__(self, dims: AttentionSizes):
        super().__init__()
        self.head_dim = dims.head_dim
        self.q_proj = nn.Linear(dims.hidden, dims.heads * dims.head_dim, bias=dims.qkv_bias)
        self.k_proj = nn.Linear(dims.hidden, dims.kv_heads * dims.head_dim, bias=dims.qkv_bias)
        self.v_proj = nn.Linear(dims.hidden, dims.kv_heads * dims.head_dim, bias=dims.qkv_bias)
        self.q_norm = RMSNorm(dims.head_dim, dims.qk_norm_eps) if dims.qk_norm else None
        self.k_norm = RMSNorm(dims.head_dim, dims.qk_norm_eps) if dims.qk_norm else None

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U [..., D] -> q [..., H, d], k and v [..., G, d]."""
        q, k, v = (p(u).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v


class MMateBlock(nn.Module):
    """Replaces one self-attention; `layout` tensors come from linmu.layout.stack_layouts (None = text only)."""

    def __init__(self, dims: AttentionSizes, mmate: MMateConfig, layer_idx: int, vision: bool):
        super().__init__()
        self.dims, self.mmate, self.layer_idx = dims, mmate, layer_idx
        self.schedule, self.shift = layer_idx % SCHEDULES, layer_idx % SHIFTS
        sizes = (dims.hidden, dims.heads, dims.kv_heads, dims.head_dim)
        self.flex = Projections(dims)
        self.scan_forward = Direction(*sizes, mmate)
        self.scan_backward = Direction(*sizes, mmate) if vision and mmate.backward else None
        self.swin = Projections(dims) if mmate.has_swin(vision) else None
        self.gate_forward = nn.Linear(dims.hidden, dims.heads) if self.scan_backward is not None else None
        self.gate_backward = nn.Linear(dims.hidden, dims.heads) if self.scan_backward is not None else None
        self.alpha = nn.Linear(dims.hidden, dims.heads) if mmate.mixes(vision) else None
        self.o_proj = nn.Linear(dims.heads * dims.head_dim, dims.hidden, bias=dims.o_bias)
        self.window_off: Tensor | None = None  # [B] bool: prompts without text window, in training and measurement

    @torch.no_grad()
    def seed(self) -> None:
        """Initial values of everything that the teacher does not have; inherited projections are left alone."""
        for direction in (self.scan_forward, self.scan_backward):
            if direction is not None:
                direction.seed()
        for gate in (self.gate_forward, self.gate_backward, self.alpha):
            if gate is not None:
                gate.weight.zero_()
                gate.bias.zero_()

    def forward(
        self,
        u: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        state: dict[str, Tensor] | None = None,
        valid: Tensor | None = None,
        layout: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One pass over S tokens.

        u [B,S,D]; position_embeddings cos, sin [B or 1,S,d]; state {"conv", "recurrent", ...} of a former pass or None;
        valid [B,S] bool, False on left padding; layout: index tensors of linmu.layout.stack_layouts.
        Returns y [B,S,D] and the new state.
        """
        tables = batch_tables(position_embeddings, len(u))
        state = state if state is not None else self.initial_state(u)
        qkv = self.flex(u)
        mixed, new_state = self._flex(u, qkv, tables, state, valid, layout)
        if self.alpha is not None:
            local, window_state = self._local(u, qkv, tables, state, valid, layout)
            new_state |= window_state
            if local is not None:
                share = self._alpha(u, state, valid, layout)
                mixed = share * mixed + (1 - share) * local
        return self.o_proj(mixed.flatten(2).to(u.dtype)), new_state

    def initial_state(self, u: Tensor) -> dict[str, Tensor]:
        """Zero state for inputs u [B,...]; keys as in the bundle's contract plus `count` [B] for text windows."""
        conv, recurrent = self.scan_forward.initial_state(u)
        state = {"conv": conv, "recurrent": recurrent}
        if self.mmate.text_window:
            shape = (u.shape[0], self.dims.kv_heads, self.mmate.text_slots, self.dims.head_dim)
            state |= {"key": u.new_zeros(shape), "value": u.new_zeros(shape)}
            state["count"] = torch.zeros(u.shape[0], dtype=torch.long, device=u.device)
        return state

    def _flex(self, u, projected, tables, state, valid, layout) -> tuple[Tensor, dict[str, Tensor]]:
        qkv = torch.cat([x.flatten(2) for x in projected], -1)  # [B, S, C]
        controls = list(self.scan_forward.controls(u))
        if valid is not None:
            qkv, *controls = (x * valid[..., None].to(x.dtype) for x in (qkv, *controls))
        past = (state["conv"], state["recurrent"])
        if layout is None:
            y, past = self.scan_forward.scan(qkv, controls, tables, past, valid)
            return self.scan_forward.norm(y), {"conv": past[0], "recurrent": past[1]}
        order, inverse = (layout[name][self.schedule].view(u.shape[:2]) for name in ("order", "inverse"))
        cos, sin, qkv_there, *there = (gather_rows(x, order) for x in (*tables, qkv, *controls))
        y, past = self.scan_forward.scan(qkv_there, there, (cos, sin), past, valid)
        y = gather_rows(self.scan_forward.norm(y), inverse)
        if self.scan_backward is not None and layout["backward"].shape[-1]:
            y = self._fuse(u, y, self._backward(u, qkv, tables, layout), layout["vision"].view(u.shape[:2]))
        return y, {"conv": past[0], "recurrent": past[1]}

    def _backward(self, u, qkv, tables, layout) -> Tensor:
        index = layout["backward"][self.schedule]  # [B, Nb]
        direction = self.scan_backward
        assert direction is not None
        cos, sin, qkv, *controls = (gather_rows(x, index) for x in (*tables, qkv, *direction.controls(u)))
        start = direction.initial_state(u)
        y, _ = direction.scan(qkv, controls, (cos, sin), start, restart=layout["restart"], strict=True)
        return gather_rows(direction.norm(y), layout["backward_slot"][self.schedule].view(u.shape[:2]))

    def _fuse(self, u, forward: Tensor, backward: Tensor, vision: Tensor) -> Tensor:
        assert self.gate_forward is not None and self.gate_backward is not None
        vision = vision[..., None, None]  # [B, S, 1, 1]
        gate_f = self.gate_forward(u).sigmoid()[..., None]
        gate_b = self.gate_backward(u).sigmoid()[..., None]
        return torch.where(vision, gate_f * forward + gate_b * backward, forward)

    def _alpha(self, u, state, valid, layout) -> Tensor:
        assert self.alpha is not None
        share = self.alpha(u).sigmoid()[..., None]
        text = torch.ones_like(share)
        if self.mmate.text_window:  # nothing has left the window yet: it has seen all
            text = torch.where(self._beyond(u, state, valid), share, torch.zeros_like(share))
            if self.window_off is not None:
                text = torch.where(self.window_off[:, None, None, None], torch.ones_like(share), text)
        if layout is None or not self.mmate.local_swin:
            return text
        return torch.where(layout["vision"].view(u.shape[:2])[..., None, None], share, text)

    def _beyond(self, u, state, valid) -> Tensor:
        """[B,S,1,1] bool: tokens for which one that is no sink has left the text window."""
        read = torch.arange(1, u.shape[1] + 1, device=u.device) if valid is None else valid.cumsum(1)
        return ((state["count"][:, None] + read) > self.mmate.text_slots)[..., None, None]

    def _local(self, u, projected, tables, state, valid, layout) -> tuple[Tensor | None, dict[str, Tensor]]:
        scale = self.dims.head_dim**-0.5
        text, new_state = None, {}
        if self.mmate.text_window:
            own = self.swin if self.mmate.own_text_window else None
            q, k, v = projected if own is None else own(u)
            q, k = rotate(q, *tables), rotate(k, *tables)
            valid_tokens = valid if valid is not None else torch.ones(u.shape[:2], dtype=torch.bool, device=u.device)
            past = (state["key"], state["value"], state["count"])
            text, present = sliding_attention(q, k, v, valid_tokens, past, self.mmate.text_sinks, scale)
            new_state = dict(zip(("key", "value", "count"), present, strict=True))
        if layout is None or not self.mmate.local_swin or not layout["windows"].shape[1]:
            return text, new_state
        assert self.swin is not None
        index, segment = layout["windows"][self.shift], layout["window_segment"][self.shift]  # [W, L]
        q, k, v = self.swin(gather_rows(u, index))
        cos, sin = (gather_rows(table, index) for table in tables)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = windowed_attention(q, k, v, segment, index if self.mmate.causal_windows else None, scale)
        y = gather_rows(y, layout["window_slot"][self.shift].view(u.shape[:2]))
        if text is not None:
            y = torch.where(layout["vision"].view(u.shape[:2])[..., None, None], y, text)
        return y, new_state
