"""Encoded samples of any lengths as the arguments of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linmu.errors import InputError
from linmu.layout import PromptRules
from linmu.model.hf_inputs import TILE_AXIS, hf_inputs
from linmu.processing.encode import EncodedSample

IGNORED = -100  # what transformers' losses leave out
JOINED = ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def collate(encoded: Sequence[EncodedSample], rules: PromptRules | None, pad_id: int = 0) -> dict[str, Any]:
    """Arguments of a teacher's forward for a batch, padded on the left, with three more.

    input_ids, attention_mask [B,S] int64; pixels and grids of the family as its processor gives them for a batch;
    labels [B,S] int64: -100 where nothing is to be predicted (losses shift them, as in transformers); sample_ids:
    list of B ids; linmu_media: for students, not teachers; only where a video of a tile family needs it.
    `rules` are the model's PromptRules (None: text only).
    """
    length = max(item.tokens for item in encoded)
    ids = torch.full((len(encoded), length), pad_id, dtype=torch.int64)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row, item in enumerate(encoded):
        start = length - item.tokens
        values = torch.from_numpy(item.inputs.input_ids.astype(np.int64))
        ids[row, start:], mask[row, start:] = values, 1
        labels[row, start:] = torch.where(torch.from_numpy(item.answer_mask), values, IGNORED)
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    batch["sample_ids"] = [item.id for item in encoded]
    if rules is not None:
        batch |= _media(encoded, rules, length)
    return batch


def _media(encoded: Sequence[EncodedSample], rules: PromptRules, length: int) -> dict[str, Any]:
    """Pixels, grids and token types of a batch; nothing for a batch of text."""
    rows = [hf_inputs(item.inputs, rules) for item in encoded]
    arguments: dict[str, Any] = {}
    for name in JOINED:
        if parts := [row[name] for row in rows if name in row]:
            tiles = name == "pixel_values" and rules.family in TILE_AXIS
            arguments[name] = _stacked_tiles(encoded, rows) if tiles else torch.cat(parts)
    if any("mm_token_type_ids" in row for row in rows):
        types = torch.zeros(len(rows), length, dtype=torch.int64)
        for number, row in enumerate(rows):
            if (kinds := row.get("mm_token_type_ids")) is not None:
                types[number, length - kinds.shape[1] :] = kinds[0]
        arguments["mm_token_type_ids"] = types
    if any("linmu_media" in row for row in rows):
        arguments["linmu_media"] = [item.inputs.media for item in encoded]
    return arguments


def _stacked_tiles(encoded: Sequence[EncodedSample], rows: Sequence[dict[str, Any]]) -> Tensor:
    """[B, most, 3, H, W] float32: Idefics3 and SmolVLM know padding tiles by their being zero all over."""
    tiles = [row["pixel_values"][0] if "pixel_values" in row else None for row in rows]
    shape = next(part.shape[1:] for part in tiles if part is not None)
    out = torch.zeros(len(rows), max(len(part) for part in tiles if part is not None), *shape)
    for number, part in enumerate(tiles):
        if part is None:
            continue
        if not part.flatten(1).any(1).all():
            raise InputError(
                f"{encoded[number].id}: a picture is zero all over after normalizing, which the model takes for padding"
            )
        out[number, : len(part)] = part
    return out
