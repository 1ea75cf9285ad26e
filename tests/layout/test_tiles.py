"""One tile's pixels and tokens, as configs say them and where they leave things out."""

from __future__ import annotations

import pytest

from linmu.errors import InputError
from linmu.layout.rules import PromptRules
from linmu.layout.tiles import Tile, tile_of
from linmu.layout.vision_grid import vision_facts

REST = {"text_config": {"hidden_size": 48}}
TILES = [
    ("smolvlm", {"vision_config": {"image_size": 512, "patch_size": 16}, "scale_factor": 4}, Tile(512, 16, 4), 64),
    ("idefics3", {"vision_config": {"image_size": 256, "patch_size": None}}, Tile(256, 32, 2), 16),
    ("internvl", {}, Tile(448, 14, 2), 256),
    ("internvl", {"vision_config": {"image_size": [84, 84], "patch_size": [14, 14]}}, Tile(84, 14, 2), 9),
    ("llava", {}, Tile(336, 14), 576),
    ("llava", {"vision_config": {"model_type": "clip_vision_model"}}, Tile(224, 32), 49),
    ("llava", {"vision_config": {"model_type": "siglip_vision_model"}}, Tile(224, 16, extra=-1), 195),
    ("llava", {"vision_config": {"model_type": "dinov2", "image_size": 518}}, Tile(336, 14), 576),
    ("llava", {"vision_config": {"model_type": "dinov2", "image_size": 56}}, Tile(56, 14), 16),
]


@pytest.mark.parametrize(("family", "config", "tile", "tokens"), TILES)
def test_tiles_of_configs(family, config, tile, tokens):
    assert tile_of(family, config) == tile and tile.tokens == tokens
    facts = vision_facts(
        {**config, **REST, "vision_config": {"num_channels": 3, **config.get("vision_config", {})}}, family
    )
    if config.get("vision_config") is not None or family != "llava":
        assert (facts["tile_size"], facts["patch"], facts["merge"]) == ([tile.pixels] * 2, tile.patch, tile.merge)
        assert facts["tokens_per_tile"] == tokens
    if tile.extra == 0:
        rules = PromptRules.from_config({"model_type": family, **config})
        assert rules.tokens_per_tile == tokens and rules.tile == (1, tile.side, tile.side)


REFUSED = [
    ("smolvlm", {}, "patches a side of an image tile; got 7; expected a multiple of 2"),
    ("internvl", {"downsample_ratio": 0.3}, "downsample_ratio; got 0.3"),
    ("internvl", {"downsample_ratio": -0.5}, "downsample_ratio; got -0.5"),
    ("internvl", {"vision_config": {"image_size": [448, 224]}}, "a square"),
    ("llava", {"vision_config": {"model_type": "vivit"}}, "LLaVA vision tower; got vivit"),
]


@pytest.mark.parametrize(("family", "config", "message"), REFUSED)
def test_tiles_that_no_tower_takes(family, config, message):
    with pytest.raises(InputError, match=message) as error:
        tile_of(family, config)
    assert "\n" not in str(error.value)
