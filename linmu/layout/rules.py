"""What a family's config says about prompts: which tokens are vision tokens, and how many a picture takes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from linmu.errors import InputError
from linmu.families import STUDENT_PREFIX, Family, get_family
from linmu.layout.tiles import tile_of, without_nulls

# What config.json leaves out when it equals transformers' default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652},
    "qwen3_vl": {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652},
    "smolvlm": {"image_token_id": 128257},
    "idefics3": {"image_token_id": 128257},
    "internvl": {"image_token_id": 151667},
    "llava": {"image_token_index": 32000},
}
VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"spatial_merge_size": 2, "temporal_patch_size": 2, "tokens_per_second": 4},
    "qwen3_vl": {"spatial_merge_size": 2, "temporal_patch_size": 2},
}
LARGEST_RULE = 1 << 30


@dataclass(frozen=True)
class PromptRules:
    """How a family's prompts are read; stored in the manifest.

    image_token_id, video_token_id: the ids that stand for vision tokens (None: the family has none);
    merge_size: patches per token, each way (grid families); tokens_per_tile: tokens of a square tile (tile families);
    temporal_patch_size: video frames per grid frame; tokens_per_second: rotary positions per second of video.
    """

    family: str
    image_token_id: int | None = None
    video_token_id: int | None = None
    vision_start_token_id: int | None = None
    merge_size: int = 1
    tokens_per_tile: int = 0
    temporal_patch_size: int = 1
    tokens_per_second: float = 1.0

    @property
    def facts(self) -> Family:
        """The family's row of linmu.families."""
        return get_family(self.family)

    @property
    def tile(self) -> tuple[int, int, int]:
        """The grid of one tile; raises InputError when a tile is not square."""
        side = math.isqrt(self.tokens_per_tile)
        if side < 1 or side * side != self.tokens_per_tile:
            raise InputError("tokens per image tile", got=self.tokens_per_tile, expected="a square number")
        return (1, side, side)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PromptRules:
        """Read a Hugging Face config.json or `config.to_dict()`, a teacher's or its student's.

        Raises InputError for an unsupported family or image tokens that do not form a square.
        """
        family = get_family(str(config.get("model_type")).removeprefix(STUDENT_PREFIX))
        if family.vision == "none":
            return cls(family.name)
        top = {**DEFAULTS[family.name], **without_nulls(config)}
        if family.vision == "grid":
            vision = {**VISION_DEFAULTS[family.name], **without_nulls(top.get("vision_config") or {})}
            return cls(
                family.name,
                image_token_id=top["image_token_id"],
                video_token_id=top["video_token_id"],
                vision_start_token_id=top["vision_start_token_id"],
                merge_size=int(vision["spatial_merge_size"]),
                temporal_patch_size=_last(vision["temporal_patch_size"]),
                tokens_per_second=float(vision.get("tokens_per_second", 1.0)),
            )
        image_token = top["image_token_id"] if "image_token_id" in top else top["image_token_index"]
        rules = cls(family.name, image_token_id=image_token, tokens_per_tile=tile_of(family.name, config).tokens)
        _ = rules.tile  # refuse here, not at the first image
        return rules

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> PromptRules:
        """Read `to_json`'s form; raises InputError on an unknown or missing field or a bad value."""
        if not isinstance(data, dict):
            raise InputError("prompt rules", got=type(data).__name__, expected="a JSON object")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise InputError("unknown prompt rule", got=", ".join(unknown), expected=", ".join(sorted(known)))
        if "family" not in data:
            raise InputError("prompt rules without a family", expected="family")
        for name, value in data.items():
            _check_rule(name, value)
        return cls(**data)


def _check_rule(name: str, value: Any) -> None:
    """Raise InputError for a value that no family has: sizes go into array shapes, ids into comparisons."""
    if name == "family":
        get_family(value)
        return
    whole = type(value) is int and 0 <= value < LARGEST_RULE
    if name.endswith("_token_id"):
        fits = value is None or whole
    elif name == "tokens_per_second":
        fits = type(value) in (int, float) and 0 < value < LARGEST_RULE
    else:
        fits = whole and value >= (0 if name == "tokens_per_tile" else 1)
    if not fits:
        raise InputError(f"prompt rule {name}", got=f"{value!r:.60}", expected="a count")


def _last(value: Any) -> int:
    """A size given as a number or as a pair."""
    return int(value[-1]) if isinstance(value, (list, tuple)) else int(value)
