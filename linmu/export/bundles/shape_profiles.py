"""Shape ranges of a bundle's graphs for compilers that want them: smallest, usual and largest of every dynamic input.

The manifest records them ("profiles"), so that a device compiles for the very shapes that were checked at export.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from linmu.formats.manifest import Manifest
from linmu.runtimes.ort_runner import TILES_AT_ONCE
from linmu.runtimes.prompt import MAX_PIECE_TOKENS, window_row

Range = tuple[int, int, int]  # smallest, usual, largest

USUAL_TOKENS = 512
USUAL_IMAGE_TOKENS, MOST_IMAGE_TOKENS = 256, 1024  # of one grid frame, after merging
SPAN_STEP = 128  # prompts are measured in multiples of it


def most_prefill_tokens(manifest: Manifest) -> int:
    """The longest prefill call: a full piece, or one span of a video at the largest frames that are supported."""
    if manifest.vision.get("kind") != "grid":
        return MAX_PIECE_TOKENS
    span = manifest.model.mmate.max_span_frames * MOST_IMAGE_TOKENS
    return max(MAX_PIECE_TOKENS, ceil(span / SPAN_STEP) * SPAN_STEP)


def shape_profiles(manifest: Manifest, most: int | None = None) -> dict[str, Any]:
    """{graph: {input: {"min": [...], "opt": [...], "max": [...]}}} of every input with a symbolic dimension.

    most: tokens of the longest prefill call (default: `most_prefill_tokens`).
    """
    most = most_prefill_tokens(manifest) if most is None else most
    profiles: dict[str, Any] = {}
    for name, graph in manifest.graphs.items():
        sizes = (_vision_sizes if name == "vision" else _prompt_sizes)(manifest, most)
        for spec in graph.inputs:
            if any(isinstance(dim, str) for dim in spec.shape):
                shapes = {
                    key: [sizes[dim][place] if isinstance(dim, str) else dim for dim in spec.shape]
                    for place, key in enumerate(("min", "opt", "max"))
                }
                profiles.setdefault(name, {})[spec.name] = shapes
    return profiles


def _prompt_sizes(manifest: Manifest, most: int) -> dict[str, Range]:
    """Sizes of token_embedding, prefill and step."""
    usual = min(USUAL_TOKENS, most)
    mmate = manifest.model.mmate
    smallest = _smallest_span(manifest.vision)
    gaps = (mmate.taps - 1) * (most // smallest)  # zero elements between two spans of the backward sequence
    row = window_row(manifest) or 1
    rows = [2 * tokens // row + 1 for tokens in (usual, most)]  # two rows in turn are never both half empty
    return {
        "tokens": (1, usual, most),
        "backward": (1, usual, most + gaps),
        "windows": (1, rows[0], rows[1]),
    }


def _smallest_span(facts: dict[str, Any]) -> int:
    """Tokens of the smallest picture that the processor makes."""
    if facts.get("kind") != "grid":
        return max(int(facts.get("tokens_per_tile") or 0), 1)
    pixels = int(facts.get("resize", {}).get("min_pixels") or 0)
    return max(pixels // (int(facts["patch"]) * int(facts["merge"])) ** 2, 1)


def _vision_sizes(manifest: Manifest, most: int) -> dict[str, Range]:
    """Sizes of one vision call: tiles, or the patches of one grid frame."""
    facts = manifest.vision
    patches, window = int(facts.get("merge") or 1) ** 2, int(facts.get("window") or 1)
    usual, most = min(USUAL_IMAGE_TOKENS, most), min(MOST_IMAGE_TOKENS, most)
    return {
        "tiles": (1, TILES_AT_ONCE, TILES_AT_ONCE),
        "patches": (patches, usual * patches, most * patches),
        # a window is `window` tokens a side, and of a thin image's only one side is full
        "windows": (1, ceil(usual / window), ceil(most / window)),
    }
