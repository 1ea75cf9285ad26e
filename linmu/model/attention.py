"""The decoder-layer side of an M-MATE block: takes what transformers' layers pass to `self_attn`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from linmu.config import MMateConfig
from linmu.errors import InputError
from linmu.model.cache import layer_slot
from linmu.model.mmate import AttentionSizes, MMateBlock

ATTENTION_NAME = "linmu"
LAYOUT_ARGUMENT = "linmu_layout"  # what the student's forward adds to the arguments of its decoder layers


class MMateAttention(MMateBlock):
    """MMateBlock with the call signature of a transformers `self_attn`."""

    def __init__(self, dims: AttentionSizes, mmate: MMateConfig, layer_idx: int, vision: bool):
        super().__init__(dims, mmate, layer_idx, vision)
        self.vision = vision

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states [B,S,D], attention_mask [B, >=S] or 4-D or None -> (y [B,S,D], None).

        linmu_layout: index tensors of the prompts (None = text only). It is an argument, not a field of the model, so
        that gradient checkpointing recomputes a block with the layout it had. InputError where vision lacks it.
        """
        if self.vision and LAYOUT_ARGUMENT not in kwargs:
            raise InputError(
                "a student's decoder got no layout of the prompt",
                expected=LAYOUT_ARGUMENT,
                fix="call the whole student, not its decoder",
            )
        slot = layer_slot(past_key_values, self.layer_idx) if past_key_values is not None else None
        valid = last_valid(attention_mask, hidden_states.shape[1])
        past, layout = slot.state if slot else None, kwargs.get(LAYOUT_ARGUMENT)
        y, state = super().forward(hidden_states, position_embeddings, past, valid, layout)
        if slot is not None:
            slot.state, slot.tokens = state, slot.tokens + hidden_states.shape[1]
        return y, None


def last_valid(mask: Tensor | None, length: int) -> Tensor | None:
    """The padding mask [B, length] bool of the last tokens, from a 2-D or 4-D mask; None when nothing is padded."""
    if mask is None:
        return None
    if mask.ndim == 4:
        mask = mask[:, 0, -1]
        mask = mask if mask.dtype == torch.bool else mask >= 0
    mask = mask[:, -length:].bool()
    return None if bool(mask.all()) else mask
