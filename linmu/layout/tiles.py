"""One tile of a tile family's tower: its pixels, patches and tokens, read from a Hugging Face config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from linmu.errors import InputError

# What config.json leaves out when it equals transformers' default: at the top, and of the tower.
TILE_DEFAULTS: dict[str, dict[str, Any]] = {
    "smolvlm": {"scale_factor": 2},
    "idefics3": {"scale_factor": 2},
    "internvl": {"downsample_ratio": 0.5},
    "llava": {"image_seq_length": 576, "vision_feature_select_strategy": "default"},
}
TOWER_DEFAULTS: dict[str, dict[str, Any]] = {
    "smolvlm": {"image_size": 224, "patch_size": 32},
    "idefics3": {"image_size": 224, "patch_size": 32},
    "internvl": {"image_size": 448, "patch_size": 14},
}
# LLaVA's towers by model_type: (image_size, patch_size, class tokens in front of the patches).
LLAVA_TOWERS = {"clip_vision_model": (224, 32, 1), "siglip_vision_model": (224, 16, 0), "dinov2": (224, 14, 1)}
LLAVA_DEFAULT_TOWER = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}


@dataclass(frozen=True)
class Tile:
    """A square tile: its side and a patch's in pixels, patches that make one token a side.

    extra: tokens beside those of the grid (LLaVA's class token; -1 where a patch is dropped in its place).
    """

    pixels: int
    patch: int
    merge: int = 1
    extra: int = 0

    @property
    def side(self) -> int:
        """Tokens a side, after the connector."""
        return self.pixels // self.patch // self.merge

    @property
    def tokens(self) -> int:
        """Tokens that it takes in a prompt."""
        return self.side**2 + self.extra


def tile_of(family: str, config: Mapping[str, Any]) -> Tile:
    """The tile of a tile family's model, from its config.json or `config.to_dict()`.

    Raises InputError for a tower that is not known, tiles that are not square and patches that cannot be merged.
    """
    top = {**TILE_DEFAULTS[family], **without_nulls(config)}
    tower = without_nulls(top.get("vision_config") or {})
    if family == "llava":
        return _llava_tile(top, tower or LLAVA_DEFAULT_TOWER)
    tower = {**TOWER_DEFAULTS[family], **tower}
    tile = Tile(_side(tower["image_size"]), _side(tower["patch_size"]), _merge(family, top))
    patches = tile.pixels // tile.patch
    if patches < 1 or patches % tile.merge:
        raise InputError("patches a side of an image tile", got=patches, expected=f"a multiple of {tile.merge}")
    return tile


def without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config that are not null."""
    return {key: value for key, value in config.items() if value is not None}


def _merge(family: str, top: Mapping[str, Any]) -> int:
    """Patches that the connector makes one token of, a side."""
    if family != "internvl":
        return int(top["scale_factor"])
    ratio = float(top["downsample_ratio"])
    merge = round(1 / ratio) if ratio > 0 else 0
    if merge < 1 or not math.isclose(merge * ratio, 1):
        raise InputError("downsample_ratio", got=ratio, expected="1 by a whole number")
    return merge


def _llava_tile(top: Mapping[str, Any], tower: Mapping[str, Any]) -> Tile:
    """LLaVA's image: the tower's patches, with its class token under strategy "full"."""
    name = tower.get("model_type", LLAVA_DEFAULT_TOWER["model_type"])
    if name not in LLAVA_TOWERS:
        raise InputError("LLaVA vision tower", got=name, expected="one of " + ", ".join(LLAVA_TOWERS))
    image_size, patch_size, class_tokens = LLAVA_TOWERS[name]
    patch = _side(tower.get("patch_size", patch_size))
    side = _side(tower.get("image_size", image_size)) // patch
    extra = class_tokens - (1 if top["vision_feature_select_strategy"] == "default" else 0)
    if name == "dinov2":
        # Dinov2 resizes its position table, so that a smaller image_seq_length tells the real crop.
        side = min(side, math.isqrt(max(int(top["image_seq_length"]) - extra, 0)))
    return Tile(side * patch, patch, extra=extra)


def _side(value: Any) -> int:
    """A size given as a number or as a pair of equal ones."""
    if not isinstance(value, (list, tuple)):
        return int(value)
    if len(set(value)) != 1:
        raise InputError("size of an image tile", got=list(value), expected="a square")
    return int(value[0])
