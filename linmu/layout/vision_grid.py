"""What the vision graph needs besides pixels: facts of the tower and index tensors of one grid (numpy only).

Glossary
    patch     p x p pixels of `temporal_patch` frames; they stand block by block (merge x merge)
    merged    one token for the decoder: merge x merge patches
    grid      (t, h, w) in patches; one call of the graph sees one grid frame (t = 1)
    slot      a place in an attention window; windows at the border have empty slots (-1)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from linmu.errors import InputError
from linmu.families import STUDENT_PREFIX, get_family
from linmu.layout.tiles import tile_of

Grid = tuple[int, int, int]


def vision_facts(config: dict[str, Any], family: str | None = None) -> dict[str, Any]:
    """The plain, JSON-able facts of a vision tower, read from a complete Hugging Face config dict (`config.to_dict()`).

    `family` defaults to the config's `model_type`. Grid families: patch, temporal_patch, merge, window (merged tokens
    a side, or None), table_side (side of the learned position table, or None), deepstack. Tile families: tile_size
    (height, width in pixels), patch, merge, tokens_per_tile. Both: kind, family, channels, hidden_size (of the output).
    Raises InputError for a family without vision and for a missing setting.
    """
    name = family or config["model_type"].removeprefix(STUDENT_PREFIX)
    kind = get_family(name).vision
    if kind == "none":
        raise InputError(f"model family {name!r} has no vision tower", expected="a vision-language family")
    try:
        return _grid_facts(name, config) if kind == "grid" else _tile_facts(name, config)
    except KeyError as error:
        raise InputError(
            f"the configuration of {name} lacks a vision setting",
            got=f"no {error.args[0]!r}",
            fix="pass config.to_dict() of the loaded configuration, which holds the defaults too",
        ) from error


def vision_inputs(family: str, vision: dict[str, Any], grid: Grid) -> dict[str, np.ndarray]:
    """The index tensors of one call, by graph input name, for a grid of (1, h, w) patches; empty for tile families.

    `vision.position_ids` [patches, 2] int64 (row, column). Qwen2.5-VL: `vision.window_slots` [windows, slots] int64
    (the patch in each slot, -1 = empty) and `vision.window_rank` [patches] int64 (flat slot of each patch).
    Qwen3-VL: `vision.table_index` [patches, 4] int64 and `vision.table_weight` [patches, 4] float32.
    Raises InputError unless t is 1 and h and w are positive multiples of merge.
    """
    if get_family(family).vision != "grid":
        return {}
    frames, height, width = (int(size) for size in grid)
    merge = vision["merge"]
    if frames != 1 or height < merge or width < merge or height % merge or width % merge:
        raise InputError(
            "vision grid",
            got=f"{frames}x{height}x{width} patches",
            expected=f"one frame, height and width multiples of {merge}",
            fix="call the graph once per grid frame",
        )
    positions = _block_positions(height, width, merge)
    inputs = {"vision.position_ids": positions}
    if vision["window"] is not None:
        slots = _window_slots(height // merge, width // merge, vision["window"], merge * merge)
        inputs["vision.window_slots"] = slots
        inputs["vision.window_rank"] = _rank(slots)
    if vision["table_side"] is not None:
        index, weight = _table_taps(positions, (height, width), vision["table_side"])
        inputs["vision.table_index"], inputs["vision.table_weight"] = index, weight
    return inputs


def _grid_facts(name: str, config: dict[str, Any]) -> dict[str, Any]:
    tower = config["vision_config"]
    merge, patch = tower["spatial_merge_size"], tower["patch_size"]
    windowed = name == "qwen2_5_vl"
    return {
        "kind": "grid",
        "family": name,
        "channels": tower["in_channels"],
        "patch": patch,
        "temporal_patch": tower["temporal_patch_size"],
        "merge": merge,
        "window": tower["window_size"] // merge // patch if windowed else None,
        "table_side": None if windowed else int(tower["num_position_embeddings"] ** 0.5),
        "deepstack": 0 if windowed else len(tower["deepstack_visual_indexes"]),
        "hidden_size": tower["out_hidden_size"],
    }


def _tile_facts(name: str, config: dict[str, Any]) -> dict[str, Any]:
    tile = tile_of(name, config)
    return {
        "kind": "tiles",
        "family": name,
        "channels": config["vision_config"]["num_channels"],
        "tile_size": [tile.pixels, tile.pixels],
        "patch": tile.patch,
        "merge": tile.merge,
        "tokens_per_tile": tile.tokens,
        "hidden_size": config["text_config"]["hidden_size"],
    }


def _block_positions(height: int, width: int, merge: int) -> np.ndarray:
    """(row, column) of every patch in merge-block order: [patches, 2] int64."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    blocks = np.stack([rows, columns], -1).reshape(height // merge, merge, width // merge, merge, 2)
    return np.ascontiguousarray(blocks.swapaxes(1, 2).reshape(-1, 2), dtype=np.int64)


def _window_slots(rows: int, columns: int, window: int, unit: int) -> np.ndarray:
    """Patches of each attention window, -1 in empty slots: [windows, window * window * unit] int64."""
    down, across = -(-rows // window), -(-columns // window)
    index = np.full((down * window, across * window), -1, np.int64)
    index[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    windows = index.reshape(down, window, across, window).swapaxes(1, 2).reshape(down * across, -1, 1)
    return np.where(windows < 0, -1, windows * unit + np.arange(unit)).reshape(down * across, -1)


def _rank(slots: np.ndarray) -> np.ndarray:
    """The flat slot of each patch: [patches] int64."""
    flat = slots.reshape(-1)
    taken = np.flatnonzero(flat >= 0)
    rank = np.empty(taken.size, np.int64)
    rank[flat[taken]] = taken
    return rank


def _axis_taps(index: np.ndarray, size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Two neighbours on one axis of the position table and their linear weights (corners aligned), in float32."""
    source = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    taps = np.floor(source).astype(np.int64)[:, None] + np.arange(2)
    weights = np.maximum(1 - np.abs(source[:, None] - taps.astype(np.float32)), 0).astype(np.float32)
    return np.clip(taps, 0, side - 1), weights


def _table_taps(positions: np.ndarray, size: tuple[int, int], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the position table and their bilinear weights for each patch: [patches, 4] int64 and float32."""
    row_taps, row_weights = _axis_taps(positions[:, 0], size[0], side)
    column_taps, column_weights = _axis_taps(positions[:, 1], size[1], side)
    index = row_taps[:, :, None] * side + column_taps[:, None, :]
    weight = row_weights[:, :, None] * column_weights[:, None, :]
    return index.reshape(-1, 4), weight.reshape(-1, 4)
