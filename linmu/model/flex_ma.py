"""Flex-MA: a forward state-space branch over all tokens and a backward one over the vision tokens of each span.

Glossary
    C           conv channels, (H + 2G) * d: the concatenated q | k | v before the key/value heads are repeated
    M           heads that own a decay and a state: H or G (config.decay)
    controls    what a rule takes besides q, k and v: log-decay, and write strength of the delta rule; [B, S, M] each
    order       scan position -> token (Rotary-Major Scan); flattened over the batch, [B*S]
    backward    elements of the backward sequence -> token, B*S = a zero row; [B, Nb]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from linmu.config import MMateConfig
from linmu.model import delta, ssm
from linmu.model.rotary import rotate

RULES = {"gated": ssm, "gated_delta": delta}  # modules with the same functions


class HeadNorm(nn.Module):
    """RMSNorm of each head's output with its own weight: x [B,S,H,d] -> [B,S,H,d]."""

    def __init__(self, heads: int, head_dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, head_dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise in float32 (or wider); the output has the weight's dtype."""
        wide = x if x.dtype == torch.float64 else x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(self.weight.dtype) * self.weight


class Direction(nn.Module):
    """What one scan direction owns: conv, decay, norm; write strength and skip where asked for (mmate.md, Flex-MA)."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, head_dim: int, mmate: MMateConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.mmate = heads, kv_heads, head_dim, mmate
        self.state_heads = mmate.state_heads(heads, kv_heads)
        channels = (heads + 2 * kv_heads) * head_dim
        self.conv_weight = nn.Parameter(torch.empty(channels, 1, mmate.taps))
        self.conv_bias = nn.Parameter(torch.empty(channels))
        self.dt_proj = nn.Linear(hidden, self.state_heads, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(self.state_heads))
        self.a_log = nn.Parameter(torch.empty(self.state_heads))
        self.beta_proj = nn.Linear(hidden, self.state_heads) if mmate.rule == "gated_delta" else None
        self.skip = nn.Parameter(torch.empty(heads)) if mmate.skip else None
        self.norm = HeadNorm(heads, head_dim, mmate.norm_eps)

    @torch.no_grad()
    def seed(self) -> None:
        """Identity conv, half-lives spread over the heads and not input-dependent, half write strength, no skip."""
        self.conv_weight.zero_()
        self.conv_weight[:, :, -1] = 1.0
        self.conv_bias.zero_()
        self.dt_proj.weight.zero_()
        self.spread_rates()
        self.a_log.zero_()
        if self.beta_proj is not None:
            self.beta_proj.weight.zero_()
            self.beta_proj.bias.zero_()
        if self.skip is not None:
            self.skip.zero_()
        self.norm.weight.fill_(1.0)

    @torch.no_grad()
    def spread_rates(self) -> None:
        """Half-lives spread over the heads, whatever they do."""
        self.dt_bias.copy_(ssm.initial_dt_bias(self.state_heads, self.mmate.min_half_life, self.mmate.max_half_life))

    def controls(self, u: Tensor) -> tuple[Tensor, ...]:
        """G and, under the delta rule, beta of inputs u [B,S,D]: [B,S,M] each, float32 or wider."""
        g = ssm.log_decay(self.dt_proj(u), self.dt_bias, self.a_log)
        return (g,) if self.beta_proj is None else (g, ssm.wide(self.beta_proj(u)).sigmoid())

    def scan(
        self,
        qkv: Tensor,
        controls: Sequence[Tensor],
        tables: tuple[Tensor, Tensor],
        state: tuple[Tensor, Tensor],
        valid: Tensor | None = None,
        restart: Tensor | None = None,
        strict: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Conv, rotation and recurrence of an already ordered sequence.

        qkv [B,N,C], controls [B,N,M] each, tables cos and sin [B,N,d/2], state (conv [B,C,K-1], recurrent [B,M,d,d]),
        valid [B,N] bool (False: no write), restart [B,N] bool; `strict` leaves each token out of its own sum.
        Returns y [B,N,H,d] before the norm (float32) and the new state.
        """
        convolved, conv = ssm.causal_conv(qkv, self.conv_weight, self.conv_bias, state[0])
        heads = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = convolved.unflatten(-1, (-1, self.head_dim)).split(heads, 2)
        if self.mmate.rope:
            q, k = rotate(q, *tables), rotate(k, *tables)
        if valid is not None:
            k = k * valid[..., None, None].to(k.dtype)
        repeat = self.state_heads // self.kv_heads
        k, v = k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)
        rule, scale = RULES[self.mmate.rule], self.head_dim**-0.5
        if self.mmate.rule == "gated_delta":
            q, k, scale = delta.normalised(q), delta.normalised(k), 1.0
        tokens = (q, k, v, *controls)
        if q.shape[1] == 1 and restart is None and not strict:
            y, recurrent = rule.step(*(x[:, 0] for x in tokens), state[1], scale)
            y = y[:, None]
        else:
            y, recurrent = rule.chunked(*tokens, state[1], scale, restart, self.mmate.chunk_size, strict)
        if self.skip is not None:
            every = self.heads // self.state_heads
            y = y + self.skip[:, None].to(y.dtype) * v.repeat_interleave(every, 2).to(y.dtype)
        return y, (conv, recurrent)

    def initial_state(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Zero conv [B,C,K-1] and recurrent [B,M,d,d] states for inputs `like` [B,...]."""
        batch, dim = like.shape[0], self.head_dim
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        conv = like.new_zeros(batch, self.conv_weight.shape[0], self.mmate.taps - 1)
        return conv, like.new_zeros(batch, self.state_heads, dim, dim, dtype=wide)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B,S,...] by an index into its flattened tokens; index B*S reads a zero row. -> index.shape + [...]."""
    flat = x.flatten(0, 1)
    flat = torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])
    return flat[index]
