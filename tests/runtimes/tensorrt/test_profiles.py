"""Every prompt that fits in one call fits in the ranges: random spans through the real layout code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.errors import BundleError, InputError
from linmu.layout import PromptLayout, layout_tensors
from linmu.layout.types import Span
from linmu.layout.vision_grid import vision_inputs
from linmu.runtimes.tensorrt.fit import SEGMENT, SLOT, WINDOWS, check_ranges, repack_windows
from linmu.runtimes.tensorrt.plan import bind_dimensions
from linmu.runtimes.tensorrt.profiles import (
    MAX_TOKENS,
    Range,
    bundle_ranges,
    from_json,
    input_shapes,
    smallest_span,
    to_json,
    window_row,
    window_rows,
)
from linmu.specs import GraphSpec
from tests.bundles import tiny_manifest
from tests.runtimes.tensorrt.support import GRID, TILES, vision_manifest

N = 192


@st.composite
def grids(draw, vision: dict):
    """Spans of at most N tokens in all, and text before each."""
    found, used = [], 0
    for _ in range(draw(st.integers(0, 40))):
        if vision["kind"] == "tiles":
            grid = (draw(st.integers(1, 3)), 4, 4)
        else:
            height = draw(st.integers(1, 12))
            least = -(-4 // height)  # smallest_span is 4 tokens
            grid = (draw(st.integers(1, 8)), height, draw(st.integers(least, max(least, 14))))
        text, size = draw(st.integers(0, 2)), int(np.prod(grid))
        if used + text + size > N:
            break
        found.append((text, grid))
        used += text + size
    return found


def layout_of(spans: list) -> PromptLayout:
    places, start = [], 0
    for text, grid in spans:
        start += text
        count = int(np.prod(grid))
        places.append(Span(np.arange(start, start + count), grid))
        start += count
    length = min(start + 1, N)
    return PromptLayout(length, tuple(places), np.zeros((1, length), np.int64), length)


def windows_of(layout: dict, shift: int) -> list[tuple[int, ...]]:
    found = {}
    for row, (index, segment) in enumerate(zip(layout[WINDOWS][shift], layout[SEGMENT][shift], strict=True)):
        for token, number in zip(index, segment, strict=True):
            if number >= 0:
                found.setdefault((row, int(number)), []).append(int(token))
    return [tuple(tokens) for _, tokens in sorted(found.items())]


@pytest.mark.parametrize("vision", [TILES, GRID], ids=["tiles", "grid"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_prompt_of_max_tokens_fits_and_keeps_its_windows(vision, data):
    manifest = vision_manifest(vision)
    ranges = bundle_ranges(manifest, N)["prefill"]
    layout = layout_of(data.draw(grids(vision)))
    before = layout_tensors(layout, manifest.model.mmate, never_empty=True)
    after = repack_windows(before, window_row(manifest))
    spec = manifest.graphs["prefill"]
    layout_only = GraphSpec(spec.file, tuple(s for s in spec.inputs if s.name.startswith("layout.")), ())
    check_ranges("prefill", bind_dimensions(layout_only, {k: v.shape for k, v in after.items()}), ranges)
    for shift in (0, 1):
        assert windows_of(after, shift) == windows_of(before, shift)
        flat = after[WINDOWS][shift].reshape(-1)
        vision_tokens = np.flatnonzero(before["layout.vision"])
        assert np.array_equal(flat[after[SLOT][shift][vision_tokens]], vision_tokens)


def test_the_bounds_are_reached():
    manifest = vision_manifest(TILES)
    ranges = bundle_ranges(manifest, N)["prefill"]
    full = layout_of([(0, (1, 4, 4))] * (N // 16))
    tensors = layout_tensors(full, manifest.model.mmate)
    assert tensors["layout.backward"].shape[1] == ranges["backward"].max == N + 3 * (N // 16 - 1)
    assert window_row(manifest) == 2 * 4 * 3 and smallest_span(manifest) == 16
    assert window_rows(10, 6) == 3  # 4 + 3, 3: rows that end early


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_vision_windows_of_any_grid(height, width, tokens):
    manifest = vision_manifest(GRID)
    ranges = bundle_ranges(manifest, 128 + tokens)["vision"]
    found = vision_inputs("qwen2_5_vl", {**GRID, "table_side": None}, (1, 2 * height, 2 * width))
    if ranges["merged"].holds(height * width):
        assert ranges["patches"].holds(4 * height * width)
        assert ranges["windows"].holds(len(found["vision.window_slots"]))


def test_step_is_static_and_text_has_tokens_only():
    manifest = tiny_manifest()
    assert bundle_ranges(manifest) == {"step": {"batch": Range(1, 1, 1)}}
    shapes = input_shapes(manifest.graphs["step"], bundle_ranges(manifest)["step"])
    assert shapes["past.0.recurrent"] == ((1, 6, 5, 7),) * 3
    assert bundle_ranges(vision_manifest(TILES))["prefill"]["tokens"].max == MAX_TOKENS


def test_ranges_to_json_and_back():
    ranges = bundle_ranges(vision_manifest(GRID), 300)["prefill"]
    assert from_json(to_json(ranges)) == ranges
    for wrong in ({"a": {"min": 2, "opt": 1, "max": 3}}, {"a": {}}, [], {"a": {"min": "x", "opt": 1, "max": 1}}):
        with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
            from_json(wrong)


def test_what_cannot_be_profiled_is_refused():
    with pytest.raises(InputError, match="at least 160"):
        bundle_ranges(vision_manifest(TILES), 159)
    manifest = vision_manifest(TILES)
    odd = replace(
        manifest.graphs["vision"],
        inputs=manifest.graphs["step"].inputs[:0]
        + tuple(replace(spec, shape=("frames", *spec.shape[1:])) for spec in manifest.graphs["vision"].inputs),
    )
    with pytest.raises(BundleError, match="vision.onnx: dimension 'frames'"):
        bundle_ranges(replace(manifest, graphs={**manifest.graphs, "vision": odd}))
    with pytest.raises(InputError, match="tokens = 200 in the prefill engine.*--max-tokens"):
        check_ranges("prefill", {"tokens": 200}, bundle_ranges(manifest, N)["prefill"])
