"""Shape ranges hold every call that a runner makes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.config import MMateConfig
from linmu.export.bundles.shape_profiles import MOST_IMAGE_TOKENS, most_prefill_tokens, shape_profiles
from linmu.formats.manifest import Manifest
from linmu.layout import LAYOUT_SPECS, PromptLayout, layout_tensors
from linmu.layout.types import Span
from linmu.layout.vision_grid import vision_inputs
from linmu.specs import GraphSpec, TensorSpec
from tests.bundles import tiny_manifest

MMATE = MMateConfig(window_frames=2, window_rows=3, window_columns=4, max_span_frames=4, chunk_size=16)
ROW = 2 * 3 * 4
GRID = {"kind": "grid", "family": "qwen2_5_vl", "patch": 7, "merge": 2, "window": 4, "table_side": None}
TILES = {"kind": "tiles", "family": "smolvlm", "merge": 2, "tokens_per_tile": 9}


@cache
def manifest(kind: str) -> Manifest:
    """Graphs of the shapes that target jetson writes, without files."""
    facts = GRID if kind == "grid" else TILES
    layout = tuple(
        TensorSpec(s.name, s.dtype, tuple(ROW if dim == "window_tokens" else dim for dim in s.shape))
        for s in LAYOUT_SPECS
    )
    embeds = TensorSpec("inputs_embeds", "float32", (1, "tokens", 30))
    vision = (TensorSpec("pixel_values", "float32", ("tiles", 3, 16, 16)),)
    if kind == "grid":
        vision = (
            TensorSpec("pixel_values", "float32", ("patches", 21)),
            TensorSpec("vision.position_ids", "int64", ("patches", 2)),
            TensorSpec("vision.window_slots", "int64", ("windows", 64)),
            TensorSpec("vision.window_rank", "int64", ("patches",)),
        )
    graphs = {
        "prefill": GraphSpec("prefill.onnx", (embeds, *layout), ()),
        "vision": GraphSpec("vision.onnx", vision, ()),
        "step": GraphSpec("step.onnx", (TensorSpec("input_ids", "int64", (1, 1)),), ()),
    }
    made = tiny_manifest(graphs=graphs, vision=facts, state=(), state_bytes=0)
    return replace(made, model=replace(made.model, mmate=MMATE))


def fits(profile: dict, arrays: dict[str, np.ndarray]) -> bool:
    return all(
        all(
            low <= size <= high
            for low, size, high in zip(profile[name]["min"], array.shape, profile[name]["max"], strict=True)
        )
        for name, array in arrays.items()
    )


GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


@settings(deadline=None)
@given(st.lists(st.tuples(GRIDS, st.integers(0, 5)), max_size=6), st.booleans(), st.integers(1, 5))
def test_a_prompts_layout_lies_inside(spans, tiles, tail):
    places, start = [], 0
    for grid, text in spans:
        shape = (1, 3, 3) if tiles else grid
        count = int(np.prod(shape))
        places.append(Span(np.arange(start + text, start + text + count), shape))
        start += text + count
    tokens = start + tail
    layout = PromptLayout(tokens, tuple(places), np.arange(tokens)[None], tokens)
    arrays = layout_tensors(layout, MMATE, never_empty=True, row=ROW)
    profile = shape_profiles(manifest("tiles" if tiles else "grid"), most=tokens)["prefill"]
    assert fits(profile, arrays)
    assert fits(profile, {"inputs_embeds": np.zeros((1, tokens, 30), np.float32)})


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_grid_frame_lies_inside(rows, columns):
    inputs = vision_inputs("qwen2_5_vl", GRID, (1, 2 * rows, 2 * columns))
    inputs["pixel_values"] = np.zeros((4 * rows * columns, 21), np.float32)
    profile = shape_profiles(manifest("grid"))["vision"]
    assert fits(profile, inputs) == (rows * columns <= MOST_IMAGE_TOKENS)


@pytest.mark.parametrize(("kind", "most"), [("grid", 4096), ("tiles", 2048)])
def test_the_longest_call(kind, most):
    assert most_prefill_tokens(manifest(kind)) == most
    profiles = shape_profiles(manifest(kind))
    assert profiles["prefill"]["inputs_embeds"] == {"min": [1, 1, 30], "opt": [1, 512, 30], "max": [1, most, 30]}
    assert "step" not in profiles
    gaps = 3 * (most // (9 if kind == "tiles" else 1))
    assert profiles["prefill"]["layout.backward"]["max"] == [4, most + gaps]
    assert profiles["prefill"]["layout.windows"]["max"] == [2, 2 * most // ROW + 1, ROW]
