"""The Qwen vision towers in a form that exports: the teacher's modules and weights, our attention bookkeeping.

Glossary (as in linmu/layout/vision_grid.py)
    N patches of one grid frame, M merged tokens, W windows of P slots, H heads, d head size,
    C hidden size of the tower, D hidden size of the decoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from linmu.specs import TensorSpec

MASKED = -1e30  # finite: -inf would turn a fully masked row into NaN


class VisionTower(nn.Module):
    """One call of a vision tower; `inputs` and `outputs` describe it, `facts` are `vision_facts` of the model."""

    def __init__(self, facts: dict[str, Any], inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]):
        super().__init__()
        self.facts, self.inputs, self.outputs = facts, inputs, outputs


class GridTower(VisionTower):
    """What both Qwen towers share; positions come in as `vision.position_ids` [N, 2]."""

    def __init__(self, visual: nn.Module, facts: dict[str, Any], extra: tuple[TensorSpec, ...]):
        width = facts["channels"] * facts["temporal_patch"] * facts["patch"] ** 2
        inputs = (
            TensorSpec("pixel_values", "float32", ("patches", width)),
            TensorSpec("vision.position_ids", "int64", ("patches", 2)),
            *extra,
        )
        outputs = [TensorSpec("embeddings", "float32", ("merged", facts["hidden_size"]))]
        if facts["deepstack"]:
            outputs.append(TensorSpec("deepstack", "float32", (facts["deepstack"], "merged", facts["hidden_size"])))
        super().__init__(facts, inputs, tuple(outputs))
        self.patches = _conv_as_linear(visual.patch_embed.proj)
        self.rotary = visual.rotary_pos_emb
        self.blocks = visual.blocks
        self.merger = visual.merger

    def rotation(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [N, 1, d]."""
        cos, sin = self.rotary(hidden, position_ids)
        return cos.unsqueeze(1), sin.unsqueeze(1)


class Qwen25Tower(GridTower):
    """Qwen2.5-VL: window attention, full attention in `fullatt_block_indexes`; tokens keep their order throughout."""

    def __init__(self, visual: nn.Module, facts: dict[str, Any]):
        slots = (facts["window"] * facts["merge"]) ** 2
        super().__init__(
            visual,
            facts,
            (
                TensorSpec("vision.window_slots", "int64", ("windows", slots)),
                TensorSpec("vision.window_rank", "int64", ("patches",)),
            ),
        )
        self.full_layers = frozenset(visual.config.fullatt_block_indexes)
        self.slots = slots

    def forward(self, pixel_values: Tensor, position_ids: Tensor, window_slots: Tensor, window_rank: Tensor) -> Tensor:
        """Pixels [N, pixels of a patch], ids [N, 2], slots [W, P], rank [N] -> embeddings [M, D]."""
        hidden = self.patches(pixel_values)  # [N, C]
        rotation = self.rotation(hidden, position_ids)
        patch_of_slot = (window_slots * (window_slots >= 0)).flatten()  # [W * P]; not every runtime clips integers
        mask = torch.where(window_slots < 0, MASKED, 0.0)[:, None, None, :]  # [W, 1, 1, P]
        for index, block in enumerate(self.blocks):
            heads = rotated_heads(block.attn, block.norm1(hidden), rotation)
            if index in self.full_layers:
                mixed = full_attention(heads, block.attn.scaling)
            else:
                mixed = window_attention(heads, block.attn.scaling, patch_of_slot, mask, self.slots)
                mixed = mixed.index_select(0, window_rank)
            hidden = hidden + block.attn.proj(mixed)
            hidden = hidden + block.mlp(block.norm2(hidden))
        return self.merger(hidden)


class Qwen3Tower(GridTower):
    """Qwen3-VL: full attention, an interpolated position table, and features of some layers for the decoder."""

    def __init__(self, visual: nn.Module, facts: dict[str, Any]):
        super().__init__(
            visual,
            facts,
            (
                TensorSpec("vision.table_index", "int64", ("patches", 4)),
                TensorSpec("vision.table_weight", "float32", ("patches", 4)),
            ),
        )
        self.table = visual.pos_embed
        self.deepstack_layers = list(visual.deepstack_visual_indexes)
        self.deepstack_mergers = visual.deepstack_merger_list

    def forward(
        self, pixel_values: Tensor, position_ids: Tensor, table_index: Tensor, table_weight: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Pixels [N, pixels of a patch], ids [N, 2], taps [N, 4] -> embeddings [M, D], deepstack [layers, M, D]."""
        hidden = self.patches(pixel_values)  # [N, C]
        hidden = hidden + (self.table(table_index) * table_weight.unsqueeze(-1)).sum(1)
        rotation = self.rotation(hidden, position_ids)
        features = []
        for index, block in enumerate(self.blocks):
            heads = rotated_heads(block.attn, block.norm1(hidden), rotation)
            hidden = hidden + block.attn.proj(full_attention(heads, block.attn.scaling))
            hidden = hidden + block.mlp(block.norm2(hidden))
            if index in self.deepstack_layers:
                features.append(self.deepstack_mergers[self.deepstack_layers.index(index)](hidden))
        embeddings = self.merger(hidden)
        return (embeddings, torch.stack(features)) if features else embeddings


def rotated_heads(attention: nn.Module, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Rotated queries and keys [N, 2H, d] and values [N, H, d] of one layer."""
    heads = attention.num_heads
    qkv = attention.qkv(hidden).view(hidden.shape[0], 3 * heads, -1)  # [N, 3H, d]
    turned, value = qkv[:, : 2 * heads], qkv[:, 2 * heads :]
    first, second = turned.chunk(2, dim=-1)
    cos, sin = rotation
    return turned * cos + torch.cat((-second, first), dim=-1) * sin, value


def full_attention(heads: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """Every patch sees every patch: [N, H * d]."""
    (query, key), value = heads[0].chunk(2, dim=1), heads[1]
    scores = (query * scale).transpose(0, 1) @ key.permute(1, 2, 0)  # [H, N, N]
    return (scores.softmax(-1) @ value.transpose(0, 1)).transpose(0, 1).flatten(1)


def window_attention(
    heads: tuple[Tensor, Tensor], scale: float, patch_of_slot: Tensor, mask: Tensor, slots: int
) -> Tensor:
    """Patches see their window only: [W * P, H * d], in slot order; linear in the number of patches."""
    packed = torch.cat(heads, dim=1).index_select(0, patch_of_slot)  # [W * P, 3H, d]
    windows = packed.view(-1, slots, *packed.shape[1:])  # [W, P, 3H, d]
    query, key, value = windows.transpose(1, 2).chunk(3, dim=1)  # [W, H, P, d]
    scores = (query * scale) @ key.transpose(2, 3) + mask  # [W, H, P, P]
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2).flatten(0, 1)


def _conv_as_linear(conv: nn.Module) -> nn.Linear:
    """A convolution whose kernel covers its whole input, as a matrix product on the same weights."""
    linear = nn.Linear(1, 1, bias=conv.bias is not None, device="meta")
    linear.weight = nn.Parameter(conv.weight.detach().flatten(1), requires_grad=False)
    linear.bias = conv.bias
    linear.in_features, linear.out_features = linear.weight.shape[1], linear.weight.shape[0]
    return linear
