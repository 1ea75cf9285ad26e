"""Vision towers on square tiles (SmolVLM, Idefics3, InternVL, LLaVA) in a form that exports.

All are one pattern: patches, class token, learned positions, transformer layers, connector. The positions of the one
tile size are worked out here, so that the graph holds one small constant instead of a resize. Glossary: T tiles,
C hidden size of the tower, D hidden size of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linmu.errors import InputError
from linmu.reference.vision_towers import VisionTower
from linmu.specs import TensorSpec


@dataclass(frozen=True)
class TileParts:
    """A teacher's modules in the order of use.

    `prefix`: class token [1, 1, C] or None; `positions`: [1, tokens, C] or None; `mask_argument`: the layers take an
    attention mask, given as None; `taps`: the hidden states that go to the connector (0 = before the first layer);
    `drop_prefix`: tokens cut off the front.
    """

    patch: nn.Module
    prefix: Tensor | None
    positions: Tensor | None
    pre_norm: nn.Module
    layers: nn.ModuleList
    mask_argument: bool
    taps: tuple[int, ...]
    post_norm: nn.Module
    drop_prefix: int
    connector: nn.Module


class TileTower(VisionTower):
    """T full tiles of one size -> the rows that the teacher puts into the prompt."""

    def __init__(self, parts: TileParts, facts: dict[str, Any]):
        height, width = facts["tile_size"]
        super().__init__(
            facts,
            (TensorSpec("pixel_values", "float32", ("tiles", facts["channels"], height, width)),),
            (TensorSpec("embeddings", "float32", ("tiles", facts["tokens_per_tile"], facts["hidden_size"])),),
        )
        self.patch, self.pre_norm, self.post_norm = parts.patch, parts.pre_norm, parts.post_norm
        self.layers = parts.layers[: max(parts.taps)]  # later layers feed nothing
        self.connector = parts.connector
        self.register_buffer("prefix", parts.prefix, persistent=False)
        self.register_buffer("positions", parts.positions, persistent=False)
        self.mask_argument, self.taps, self.drop_prefix = parts.mask_argument, parts.taps, parts.drop_prefix

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixels [T, channels, height, width] -> embeddings [T, tokens, D]."""
        hidden = self.patch(pixel_values).flatten(2).transpose(1, 2)  # [T, patches, C]
        if self.prefix is not None:
            hidden = torch.cat((self.prefix.expand(hidden.shape[0], -1, -1), hidden), dim=1)
        if self.positions is not None:
            hidden = hidden + self.positions
        states = [self.pre_norm(hidden)]
        for layer in self.layers:
            states.append(layer(states[-1], None) if self.mask_argument else layer(states[-1]))
        chosen = [self.post_norm(states[tap])[:, self.drop_prefix :] for tap in self.taps]
        return self.connector(torch.cat(chosen, dim=-1) if len(chosen) > 1 else chosen[0])


class _Shuffled(nn.Module):
    """InternVL's connector: the teacher's pixel shuffle on a square of tokens, then its projector."""

    def __init__(self, shuffle: Callable[..., Tensor], ratio: float, projector: nn.Module):
        super().__init__()
        self.shuffle, self.ratio, self.projector = shuffle, ratio, projector

    def forward(self, features: Tensor) -> Tensor:
        """Features [T, patches, C] -> [T, patches * ratio^2, D]."""
        side = int(features.shape[1] ** 0.5)
        square = self.shuffle(features.view(-1, side, side, features.shape[2]), scale_factor=self.ratio)
        return self.projector(square.flatten(1, 2))


def idefics3_parts(model: nn.Module, config: Any, tile: tuple[int, int]) -> TileParts:
    """Idefics3 and SmolVLM, every tile full (no padding mask)."""
    tower = model.vision_model
    embeddings = tower.embeddings
    return TileParts(
        patch=embeddings.patch_embedding,
        prefix=None,
        positions=_bucketed_positions(embeddings, config.vision_config, tile),
        pre_norm=nn.Identity(),
        layers=tower.encoder.layers,
        mask_argument=True,
        taps=(len(tower.encoder.layers),),
        post_norm=tower.post_layernorm,
        drop_prefix=0,
        connector=model.connector,
    )


def internvl_parts(model: nn.Module, config: Any, tile: tuple[int, int]) -> TileParts:
    """InternVL: its ViT, pixel shuffle and projector."""
    tower, layers = model.vision_tower, model.vision_tower.encoder.layer
    last = config.vision_feature_layer == -1
    return TileParts(
        patch=tower.embeddings.patch_embeddings.projection,
        prefix=tower.embeddings.cls_token.detach(),
        positions=_resized_positions(tower.embeddings, tower.embeddings.position_embeddings, tile),
        pre_norm=nn.Identity(),
        layers=layers,
        mask_argument=False,
        taps=_taps(config.vision_feature_layer, len(layers)),
        post_norm=tower.layernorm if last else nn.Identity(),
        drop_prefix=int(config.vision_feature_select_strategy == "default"),
        connector=_Shuffled(model.pixel_shuffle, config.downsample_ratio, model.multi_modal_projector),
    )


def llava_parts(model: nn.Module, config: Any, tile: tuple[int, int]) -> TileParts:
    """LLaVA with a CLIP or a Dinov2 tower."""
    tower, kind = model.vision_tower, config.vision_config.model_type
    if kind not in ("clip_vision_model", "dinov2"):
        raise InputError("vision tower of this LLaVA", got=kind, expected="clip_vision_model or dinov2")
    embeddings, clip = tower.embeddings, kind == "clip_vision_model"
    layers = tower.encoder.layers if clip else tower.encoder.layer
    return TileParts(
        patch=embeddings.patch_embedding if clip else embeddings.patch_embeddings.projection,
        prefix=embeddings.class_embedding.detach()[None, None] if clip else embeddings.cls_token.detach(),
        positions=embeddings.position_embedding.weight.detach()[None]
        if clip
        else _resized_positions(embeddings, embeddings.position_embeddings, tile),
        pre_norm=tower.pre_layrnorm if clip else nn.Identity(),
        layers=layers,
        mask_argument=True,
        taps=_taps(config.vision_feature_layer, len(layers)),
        post_norm=nn.Identity(),
        drop_prefix=int(config.vision_feature_select_strategy == "default"),
        connector=model.multi_modal_projector,
    )


TILE_PARTS: dict[str, Callable[[nn.Module, Any, tuple[int, int]], TileParts]] = {
    "idefics3": idefics3_parts,
    "smolvlm": idefics3_parts,
    "internvl": internvl_parts,
    "llava": llava_parts,
}


def _taps(layer: int | list[int], count: int) -> tuple[int, ...]:
    """Indices into the count + 1 hidden states."""
    return tuple(index % (count + 1) for index in ([layer] if isinstance(layer, int) else layer))


def _resized_positions(embeddings: nn.Module, table: Tensor | None, tile: tuple[int, int]) -> Tensor | None:
    """The teacher's position table for one tile size, class token included: [1, tokens, C]."""
    if table is None:
        return None
    patch = embeddings.patch_size if isinstance(embeddings.patch_size, int) else embeddings.patch_size[0]
    count = (tile[0] // patch) * (tile[1] // patch)
    with torch.no_grad():
        return embeddings.interpolate_pos_encoding(table.new_empty(1, count + 1, table.shape[-1]), *tile).detach()


def _bucketed_positions(embeddings: nn.Module, config: Any, tile: tuple[int, int]) -> Tensor:
    """Positions [1, tokens, C] by the teacher's own bucket rule, read off while it embeds an empty full tile."""
    table, patch = embeddings.position_embedding, config.patch_size
    ids: list[Tensor] = []
    hook = table.register_forward_pre_hook(lambda _, arguments: ids.append(arguments[0]))
    try:
        with torch.no_grad():
            pixels = table.weight.new_zeros(1, config.num_channels, *tile)
            full = torch.ones(1, tile[0] // patch, tile[1] // patch, dtype=torch.bool, device=pixels.device)
            embeddings(pixels, full)
    finally:
        hook.remove()
    return table.weight.detach()[ids[0]]
