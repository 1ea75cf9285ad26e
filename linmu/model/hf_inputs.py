"""Our ModelInputs as keyword arguments of a teacher's or student's forward."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from linmu.layout import PromptRules
from linmu.processing import ModelInputs

TILE_AXIS = ("smolvlm", "idefics3")  # pixel_values [1, n, 3, H, W]; the others take [n, 3, H, W]
IMAGE, VIDEO = 1, 2  # transformers' token types


def hf_inputs(inputs: ModelInputs, rules: PromptRules | None) -> dict[str, Any]:
    """Arguments of `model(**...)` for one prompt: batch 1, no mask; pixels float32, position ids left to the model.

    `rules` are the model's PromptRules (None for text-only models). A video of a tile family adds `linmu_media`,
    which only students take: a teacher sees its frames as images.
    """
    ids = torch.from_numpy(inputs.input_ids.astype(np.int64))[None]
    arguments: dict[str, Any] = {"input_ids": ids}
    if rules is None or not inputs.media:
        return arguments
    if rules.facts.vision == "grid":
        return arguments | _grid_arguments(inputs, rules)
    pixels = torch.from_numpy(inputs.vision_calls[0]["pixel_values"])
    arguments["pixel_values"] = pixels[None] if rules.family in TILE_AXIS else pixels
    if any(item.kind == "video" for item in inputs.media):
        arguments["linmu_media"] = [inputs.media]
    return arguments


def _grid_arguments(inputs: ModelInputs, rules: PromptRules) -> dict[str, Any]:
    """Qwen: pixels and grids of images and videos, token types, seconds per grid frame (Qwen2.5-VL)."""
    calls = iter(inputs.vision_calls)
    pixels: dict[str, list[np.ndarray]] = {"image": [], "video": []}
    grids: dict[str, list[list[int]]] = {"image": [], "video": []}
    seconds = [item.seconds_per_grid for item in inputs.media if item.kind == "video"]
    for item in inputs.media:
        frames = [next(calls) for _ in range(item.tiles[0][0])]  # a call per grid frame
        pixels[item.kind] += [frame["pixel_values"] for frame in frames]
        _, height, width = (int(n) for n in frames[0]["grid"])
        grids[item.kind].append([len(frames), height, width])
    types = np.zeros(inputs.input_ids.shape, np.int64)
    types[inputs.input_ids == rules.image_token_id] = IMAGE
    types[inputs.input_ids == rules.video_token_id] = VIDEO
    arguments: dict[str, Any] = {"mm_token_type_ids": torch.from_numpy(types)[None]}
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if grids[kind]:
            arguments[name] = torch.from_numpy(np.concatenate(pixels[kind]))
            arguments[f"{kind}_grid_thw"] = torch.tensor(grids[kind])
    if seconds and rules.family == "qwen2_5_vl":
        arguments["second_per_grid_ts"] = torch.tensor(seconds)
    return arguments
