"""Random float64 M-MATE blocks, stacks of them and prompts, for the tests of linmu.model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linmu.config import MMateConfig
from linmu.layout import PromptLayout, layout_tensors, stack_layouts
from linmu.model.mmate import AttentionSizes, MMateBlock
from tests.layout.prompts import layout_of

# Pairwise distinct: hidden 10, heads 6, key/value heads 3, head size 4 (q 24, k and v 12, conv channels 48).
DIMS = AttentionSizes(hidden=10, heads=6, kv_heads=3, head_dim=4, qkv_bias=True, o_bias=True, qk_norm=True)
SMALL = {"window_frames": 2, "window_rows": 2, "window_columns": 3, "chunk_size": 5}
# Text, an image of 3 x 4, text, two spans with text between their frames, a clip, text.
PROMPT = layout_of(3, (1, 3, 4), 2, (3, 2, 2, 1), 1, (2, 1, 3), 4)
SPANS = [(span.positions.tolist(), span.grid) for span in PROMPT.spans]


def fill(module: nn.Module, seed: int = 0, noise: float = 0.5) -> None:
    """Random values everywhere; norms and convs stay near their usual values, half-lives near 1..20 tokens."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(noise * torch.randn(value.shape, generator=generator, dtype=value.dtype))
            if name.endswith("norm.weight"):
                value.add_(1.0)
            elif name.endswith("conv_weight"):
                value[..., -1] += 1.0
            elif name.endswith("dt_bias"):
                value.sub_(1.5)


def random_block(
    layer: int = 0, dims: AttentionSizes = DIMS, vision: bool = True, seed: int = 0, **settings: Any
) -> MMateBlock:
    """A float64 block of layer `layer` with random parameters."""
    block = MMateBlock(dims, MMateConfig(**{**SMALL, **settings}), layer, vision).double().eval().requires_grad_(False)
    fill(block, 10 * seed + layer)
    return block


def random_inputs(length: int, batch: int = 1, hidden: int = DIMS.hidden, seed: int = 0) -> Tensor:
    """U [B,S,D] float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, hidden, generator=generator, dtype=torch.float64)


def tables(positions: Tensor, head_dim: int = DIMS.head_dim) -> tuple[Tensor, Tensor]:
    """Cos and sin [...,d] of rotary positions [...], both halves equal as transformers makes them."""
    frequency = 1 / 100 ** (torch.arange(head_dim // 2, dtype=torch.float64) / (head_dim // 2))
    angle = positions.double()[..., None] * frequency
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def tensors(
    layout: PromptLayout, mmate: MMateConfig, start: int = 0, stop: int | None = None
) -> dict[str, Tensor] | None:
    """The block's layout of tokens start..stop of one prompt, as a batch of one; None without vision tokens."""
    named = layout_tensors(layout, mmate, start, stop)
    found = {name.removeprefix("layout."): torch.from_numpy(array) for name, array in named.items()}
    if not found["vision"].any():
        return None
    return {**found, "backward": found["backward"][:, None], "restart": found["restart"][None]}


def batch_tensors(
    layouts: list[PromptLayout], offsets: list[int], length: int, mmate: MMateConfig
) -> dict[str, Tensor]:
    """The block's layout of a left-padded batch."""
    return {name: torch.from_numpy(array) for name, array in stack_layouts(layouts, offsets, length, mmate).items()}


def run_pieces(block: MMateBlock, u: Tensor, layout: PromptLayout, cuts: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """One prompt [1,S,D] in the pieces between `cuts`, the state handed on -> y [1,S,D], last state."""
    cos, sin = tables(torch.arange(u.shape[1])[None])
    state, found = None, []
    for low, high in zip([0, *cuts], [*cuts, u.shape[1]], strict=True):
        piece = tensors(layout, block.mmate, low, high)
        y, state = block(u[:, low:high], (cos[:, low:high], sin[:, low:high]), state, None, piece)
        found.append(y)
    return torch.cat(found, 1), state


def numpy_inputs(u: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the reference takes for one prompt [1,S,D]: u, cos, sin."""
    cos, sin = tables(torch.arange(u.shape[1]))
    return u[0].numpy(), cos.numpy(), sin.numpy()
