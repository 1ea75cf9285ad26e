"""The index tensors of the vision graph against slow loops."""

from __future__ import annotations

import json

import numpy as np
import pytest

from linmu.errors import InputError
from linmu.layout.vision_grid import vision_facts, vision_inputs

MERGE, WINDOW, SIDE = 2, 3, 7
QWEN25 = {"merge": MERGE, "window": WINDOW, "table_side": None}
QWEN3 = {"merge": MERGE, "window": None, "table_side": SIDE}
GRIDS = [(1, 2, 2), (1, 6, 12), (1, 10, 4), (1, 2, 14), (1, 16, 8)]


def slow_positions(height: int, width: int) -> list[tuple[int, int]]:
    """(row, column) of the patches, block by block."""
    return [
        (top + row, left + column)
        for top in range(0, height, MERGE)
        for left in range(0, width, MERGE)
        for row in range(MERGE)
        for column in range(MERGE)
    ]


@pytest.mark.parametrize("grid", GRIDS)
def test_positions_follow_merge_blocks(grid):
    positions = vision_inputs("qwen3_vl", QWEN3, grid)["vision.position_ids"]
    assert positions.dtype == np.int64
    assert [tuple(pair) for pair in positions.tolist()] == slow_positions(grid[1], grid[2])


@pytest.mark.parametrize("grid", GRIDS)
def test_windows_hold_each_patch_once_with_its_neighbours(grid):
    inputs = vision_inputs("qwen2_5_vl", QWEN25, grid)
    slots, rank = inputs["vision.window_slots"], inputs["vision.window_rank"]
    positions = slow_positions(grid[1], grid[2])
    assert slots.shape[1] == (WINDOW * MERGE) ** 2 and slots.dtype == rank.dtype == np.int64
    assert sorted(slots[slots >= 0].tolist()) == list(range(len(positions)))
    assert slots.reshape(-1)[rank].tolist() == list(range(len(positions)))
    side = WINDOW * MERGE
    owner = {patch: window for window, row in enumerate(slots.tolist()) for patch in row if patch >= 0}
    for a, (row_a, column_a) in enumerate(positions):
        for b, (row_b, column_b) in enumerate(positions):
            same = row_a // side == row_b // side and column_a // side == column_b // side
            assert (owner[a] == owner[b]) == same
    assert (slots >= 0).any(axis=1).all()  # an empty window would cost time and make a row of zeros


@pytest.mark.parametrize("grid", GRIDS)
def test_table_taps_interpolate_linearly_between_aligned_corners(grid):
    inputs = vision_inputs("qwen3_vl", QWEN3, grid)
    index, weight = inputs["vision.table_index"], inputs["vision.table_weight"]
    assert weight.dtype == np.float32 and index.min() >= 0 and index.max() < SIDE * SIDE
    rows, columns = np.divmod(np.arange(SIDE * SIDE), SIDE)
    plane = 3.0 * rows - 0.5 * columns  # bilinear interpolation keeps a plane
    values = (plane[index] * weight).sum(1)
    for value, (row, column) in zip(values, slow_positions(grid[1], grid[2]), strict=True):
        expected = (3.0 * row / (grid[1] - 1) - 0.5 * column / (grid[2] - 1)) * (SIDE - 1)
        assert value == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("grid", [(2, 4, 4), (1, 3, 4), (1, 4, 5), (1, 0, 4), (0, 4, 4)])
def test_grids_that_are_no_call_are_refused(grid):
    with pytest.raises(InputError, match="vision grid"):
        vision_inputs("qwen2_5_vl", QWEN25, grid)


def test_tiles_need_no_indices():
    assert vision_inputs("internvl", {"kind": "tiles"}, (1, 4, 4)) == {}


def test_facts_of_a_qwen_config():
    vision = {
        "in_channels": 3,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 112,
        "out_hidden_size": 48,
    }
    facts = vision_facts({"model_type": "qwen2_5_vl", "vision_config": vision})
    assert facts["window"] == 4 and facts["table_side"] is None and facts["deepstack"] == 0
    assert json.loads(json.dumps(facts)) == facts


def test_facts_of_dinov2_tiles_follow_the_number_of_tokens():
    config = {
        "vision_config": {"model_type": "dinov2", "patch_size": 14, "image_size": 518, "num_channels": 3},
        "text_config": {"hidden_size": 48},
        "image_seq_length": 257,
        "vision_feature_select_strategy": "full",
    }
    facts = vision_facts(config, "llava")
    assert facts["tile_size"] == [224, 224] and facts["tokens_per_tile"] == 257


def test_missing_settings_and_text_families_are_refused():
    with pytest.raises(InputError, match="spatial_merge_size"):
        vision_facts({"model_type": "qwen3_vl", "vision_config": {}})
    with pytest.raises(InputError, match="no vision tower"):
        vision_facts({"model_type": "qwen2"})
