"""Sizes and tilings as pure functions of integers, the same arithmetic as the models' original processors."""

from __future__ import annotations

import math
from functools import lru_cache

from linmu.errors import InputError

MAX_ASPECT_RATIO = 200
MAX_EDGE = 4096  # of an image before it is split into tiles

Size = tuple[int, int]  # height, width


def _check_aspect(height: int, width: int) -> None:
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise InputError(
            "image or video frame is too long and thin",
            got=f"{width}x{height} pixels, ratio {ratio:.0f}",
            expected=f"a ratio of at most {MAX_ASPECT_RATIO}",
            fix="crop it or pad it",
        )


def grid_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int, frames: int = 1) -> Size:
    """Height and width that `factor` divides, near the image's shape, within the pixel limits of all `frames`.

    Raises InputError when one side is more than 200 times the other.
    """
    _check_aspect(height, width)
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if frames * rows * columns > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif frames * rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def volume_size(
    frames: int, height: int, width: int, temporal: int, factor: int, min_pixels: int, max_pixels: int
) -> Size:
    """`grid_size` for a video whose limits count all frames (Qwen3-VL): small frames are enlarged to one cell first.

    The even number of frames decides whether a limit is passed, the real one by how much to scale.
    """
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_aspect(height, width)
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    total = round(frames / temporal) * temporal * rows * columns
    if total > max_pixels:
        shrink = math.sqrt((frames * height * width) / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif total < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def longest_edge_size(height: int, width: int, longest: int) -> Size:
    """The longest edge scaled to `longest`, the other made even, both at most 4096 and at least 1."""
    ratio = width / height
    if width >= height:
        width, height = longest, int(longest / ratio)
        height += height % 2
    else:
        height, width = longest, int(longest * ratio)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    ratio = width / height
    if width >= height and width > MAX_EDGE:
        width, height = MAX_EDGE, int(MAX_EDGE / ratio)
    elif height > width and height > MAX_EDGE:
        height, width = MAX_EDGE, int(MAX_EDGE * ratio)
    return max(height, 1), max(width, 1)


def whole_tiles_size(height: int, width: int, tile: int) -> Size:
    """Both edges rounded up to whole tiles, the longer one first and the other following its ratio."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / ratio) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * ratio) / tile) * tile
    return height, width


@lru_cache(maxsize=16)
def _canvases(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """(columns, rows) of every canvas with an allowed number of tiles, fewest first."""
    sides = range(1, max_tiles + 1)
    allowed = [(w, h) for w in sides for h in sides if min_tiles <= w * h <= max_tiles]
    return tuple(sorted(allowed, key=lambda canvas: canvas[0] * canvas[1]))


def best_canvas(height: int, width: int, tile: Size, min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """(columns, rows) nearest to the image's aspect ratio; of equals, the larger while the image fills half of it."""
    best, smallest = (1, 1), math.inf
    for columns, rows in _canvases(min_tiles, max_tiles):
        difference = abs(width / height - columns / rows)
        fills_half = width * height > 0.5 * tile[0] * tile[1] * columns * rows
        if difference < smallest or (difference == smallest and fills_half):
            best, smallest = (columns, rows), difference
    return best


def shortest_edge_size(height: int, width: int, shortest: int) -> Size:
    """The shortest edge scaled to `shortest`, the other following (rounded down)."""
    if width <= height:
        return int(shortest * height / width), shortest
    return shortest, int(shortest * width / height)
