"""Every prompt that fits in one call fits in the ranges: random spans through the real layout code."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from linmu.errors import BundleError, InputError
from linmu.formats.manifest import check_profiles
from linmu.layout import PromptLayout, PromptRules, layout_tensors, pack_windows, prompt_layout
from linmu.layout.types import Span
from linmu.layout.vision_grid import vision_inputs
from linmu.runtimes.prompt import MAX_PIECE_TOKENS
from linmu.runtimes.shape_ranges import (
    Range,
    bundle_ranges,
    from_json,
    input_shapes,
    largest_sizes,
    longest_call,
    profiles,
    recorded_ranges,
    smallest_span,
    to_json,
    window_rows,
)
from linmu.runtimes.tensorrt.fit import check_ranges
from linmu.runtimes.tensorrt.plan import bind_dimensions
from linmu.specs import GraphSpec
from tests.bundles import tiny_manifest
from tests.processing.support import make_bundle, real_processor
from tests.runtimes.tensorrt.support import GRID, ROW, TILES, vision_manifest
from tests.tiny import tiny_config, tiny_tokenizer

N = 192


@st.composite
def grids(draw, vision: dict):
    """Spans of at most N tokens in all, and text before each."""
    found, used = [], 0
    for _ in range(draw(st.integers(0, 40))):
        if vision["kind"] == "tiles":
            grid = (draw(st.integers(1, 3)), 4, 4)
        else:
            grid = (draw(st.integers(1, 8)), draw(st.integers(1, 12)), draw(st.integers(1, 14)))
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


@pytest.mark.parametrize("vision", [TILES, GRID], ids=["tiles", "grid"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_prompt_of_max_tokens_fits(vision, data):
    manifest = vision_manifest(vision)
    ranges = bundle_ranges(manifest, N)["prefill"]
    layout = layout_of(data.draw(grids(vision)))
    tensors = layout_tensors(layout, manifest.model.mmate, never_empty=True, row=ROW)
    spec = manifest.graphs["prefill"]
    layout_only = GraphSpec(spec.file, tuple(s for s in spec.inputs if s.name.startswith("layout.")), ())
    check_ranges("prefill", bind_dimensions(layout_only, {k: v.shape for k, v in tensors.items()}), ranges)


def test_the_bounds_are_reached():
    manifest = vision_manifest(TILES)
    ranges = bundle_ranges(manifest, N)["prefill"]
    full = layout_of([(0, (1, 4, 4))] * (N // 16))
    tensors = layout_tensors(full, manifest.model.mmate, row=ROW)
    assert tensors["layout.backward"].shape[1] == ranges["backward"].max == N + 3 * (N // 16 - 1)
    assert smallest_span(manifest) == 16


def test_longer_calls_are_one_span():
    """What is longer than a piece is a span that stays whole: restarts between spans are counted in a piece only."""
    manifest = vision_manifest(GRID)
    backward = {n: bundle_ranges(manifest, n)["prefill"]["backward"].max for n in (192, 2048, 8192, 16384)}
    assert backward == {192: 192 + 3 * 191, 2048: 2048 + 3 * 2047, 8192: 8192 + 3, 16384: 16384 + 3}
    phone = profiles(manifest, 2048, piece=256)["prefill"]["layout.backward"]
    assert phone["max"][1] == 2048 + 3


def test_small_frames_and_pictures_of_a_real_processor(tmp_path):
    """Qwen3-VL: one token where the processor's min_pixels are 64, and a call of all its pictures fits."""
    processor = make_bundle(real_processor("qwen3_vl"), "qwen3_vl", tmp_path)
    clip = {"type": "video", "video": np.zeros((130, 8, 8, 3), np.uint8)}
    picture = {"type": "image", "image": Image.new("RGB", (20, 20)), "min_pixels": 1}
    manifest = vision_manifest({**GRID, "family": "qwen3_vl", "resize": {"min_pixels": 65536}})
    rules = PromptRules.from_config(tiny_config("qwen3_vl", tiny_tokenizer("qwen3_vl")).to_dict())
    for content in ([clip], [picture] * 60):
        inputs = processor.encode([{"role": "user", "content": content}])
        layout = prompt_layout(rules, inputs.input_ids, inputs.media, 8)
        assert min(len(span.positions) for span in layout.spans) == 1
        count = len(layout_tensors(layout, manifest.model.mmate, row=ROW)["layout.backward"][0])
        assert bundle_ranges(manifest, max(layout.length, 128))["prefill"]["backward"].holds(count)


@cache
def most_rows(tokens: int, row: int, left: int) -> int:
    """Rows that are begun at most where the last one has `left` free places: every next window that there can be."""
    if tokens == 0:
        return 0
    return max(
        (size > left) + most_rows(tokens - size, row, left - size if size <= left else row - size)
        for size in range(1, min(row, tokens) + 1)
    )


@pytest.mark.parametrize("row", range(1, 8))
def test_window_rows_are_what_the_worst_windows_take(row):
    for tokens in range(1, 30):
        assert window_rows(tokens, row) == most_rows(tokens, row, 0)


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(9, 12))
def test_packed_windows_fit_their_rows(sizes, row):
    index, _ = pack_windows([np.arange(size) for size in sizes], row)
    assert len(index) <= window_rows(sum(sizes), row)


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_vision_windows_of_any_grid(height, width, tokens):
    manifest = vision_manifest(GRID)
    ranges = bundle_ranges(manifest, 128 + tokens)["vision"]
    found = vision_inputs("qwen2_5_vl", {**GRID, "table_side": None}, (1, 2 * height, 2 * width))
    if ranges["merged"].holds(height * width):
        assert ranges["patches"].holds(4 * height * width)
        assert ranges["windows"].holds(len(found["vision.window_slots"]))
    if height == 1 and width == ranges["merged"].max:
        assert ranges["windows"].max == len(found["vision.window_slots"])


@pytest.mark.parametrize("vision", [TILES, GRID], ids=["tiles", "grid"])
def test_build_finds_what_the_export_recorded(vision):
    """With or without --max-tokens: one formula."""
    manifest = vision_manifest(vision)
    recorded = replace(manifest, profiles=profiles(manifest))
    check_profiles(recorded)
    assert bundle_ranges(recorded) == bundle_ranges(recorded, longest_call(manifest)) == bundle_ranges(manifest)
    shorter = replace(manifest, profiles=profiles(manifest, 640))
    assert bundle_ranges(shorter) == bundle_ranges(manifest, 640) != bundle_ranges(manifest)
    prefill = recorded.profiles["prefill"]
    assert prefill["inputs_embeds"] == {"min": [1, 1, 30], "opt": [1, 512, 30], "max": [1, longest_call(manifest), 30]}
    assert largest_sizes(recorded_ranges(recorded, "prefill"))["windows"] == prefill["layout.windows"]["max"][1]


def test_the_longest_call_holds_what_is_never_cut():
    tiles, grid = vision_manifest(TILES), vision_manifest(GRID)
    assert longest_call(tiles) == MAX_PIECE_TOKENS  # 8 frames of 16 tokens and their times are less
    assert longest_call(tiles, 256, 64) == 448  # 8 * (16 + 40)
    assert longest_call(grid) == 8 * 1024
    large = replace(tiles, vision={**TILES, "tokens_per_tile": 1024})
    assert longest_call(large) == 8 * (1024 + 40) + 64  # to a multiple of 128
    still = replace(large, model=replace(large.model, family="llava"))
    assert longest_call(still) == 2 * 1024 + 128
    assert longest_call(tiny_manifest()) == MAX_PIECE_TOKENS


def test_pictures_of_any_size_have_a_frames_share_of_a_call():
    """A video of 8 frames of 1,024 tokens must not ask for one picture of 8,192."""
    largest = {n: bundle_ranges(vision_manifest(GRID), n)["vision"]["merged"].max for n in (200, 2048, 8192, 16384)}
    assert largest == {200: 200, 2048: 1024, 8192: 1024, 16384: 2048}


def test_step_is_static_and_text_has_tokens_only():
    manifest = tiny_manifest()
    assert bundle_ranges(manifest) == {"step": {"batch": Range(1, 1, 1)}}
    shapes = input_shapes(manifest.graphs["step"], bundle_ranges(manifest)["step"])
    assert shapes["past.0.recurrent"] == ((1, 6, 5, 7),) * 3
    assert bundle_ranges(vision_manifest(TILES))["prefill"]["tokens"].max == MAX_PIECE_TOKENS


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
