"""Text windows left out at random in training, so that the state-space branch learns what they would do for it.

A student that always has its window leans on it alone (arXiv 2510.05901). Which samples go without depends on seed,
step and sample only, so that a resumed run and any number of processes draw the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor
from transformers import PreTrainedModel

from linmu.distill.recipe import Stage
from linmu.model.modeling import decoder_layers


def left_out(stage: Stage, step: int, sample_ids: Sequence[str], seed: int) -> Tensor | None:
    """[B] bool: samples of a step (0 is the first) that do without; None where the stage leaves out none."""
    share = stage.window_dropout * (1 - step / stage.steps)
    if share <= 0:
        return None
    return torch.tensor([_uniform(f"{seed} {step} {name}") < share for name in sample_ids])


def set_window_off(student: PreTrainedModel, rows: Tensor | None) -> None:
    """Take the text window from these prompts of a batch [B] bool (None: from none) until it is set again.

    It must stay as it is until the backward pass is over: checkpointed blocks run again in it.
    """
    for layer in decoder_layers(student):
        layer.self_attn.window_off = rows


def _uniform(text: str) -> float:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") / 2**64
