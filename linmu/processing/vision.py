"""From RGB images and frames to the tiles or patches that the vision graph takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from linmu.processing import geometry
from linmu.processing.images import center_crop, normalize, pad_to_square, resize
from linmu.processing.settings import (
    CanvasSettings,
    CropSettings,
    GridSettings,
    ImageSettings,
    SplitSettings,
    VideoSettings,
)


@dataclass(frozen=True)
class Tiles:
    """Tiles [n, H, W, 3] uint8 of one image in the order of their tokens; rows and columns 0 when it is not split."""

    pixels: np.ndarray
    rows: int = 0
    columns: int = 0


def cut(image: np.ndarray, rows: int, columns: int, tile: geometry.Size) -> list[np.ndarray]:
    """`rows` x `columns` tiles of an image, row by row."""
    height, width = tile
    return [
        image[r * height : (r + 1) * height, c * width : (c + 1) * width] for r in range(rows) for c in range(columns)
    ]


def split_tiles(image: np.ndarray, settings: SplitSettings) -> Tiles:
    """Idefics3 and SmolVLM: whole tiles row by row, then the thumbnail; one tile when it fits or must not be split."""
    tile, resample = settings.tile, settings.resample
    image = resize(image, geometry.longest_edge_size(image.shape[0], image.shape[1], settings.longest_edge), resample)
    if not settings.split:
        return Tiles(resize(image, (tile, tile), resample)[None])
    image = resize(image, geometry.whole_tiles_size(image.shape[0], image.shape[1], tile), resample)
    rows, columns = image.shape[0] // tile, image.shape[1] // tile
    if rows * columns == 1:
        return Tiles(image[None])
    thumbnail = resize(image, (tile, tile), resample)
    return Tiles(np.stack([*cut(image, rows, columns, (tile, tile)), thumbnail]), rows, columns)


def canvas_tiles(image: np.ndarray, settings: CanvasSettings) -> Tiles:
    """InternVL: the best canvas cut row by row, then the thumbnail when there is more than one tile."""
    tile = (settings.height, settings.width)
    if settings.max_tiles <= 1:
        return Tiles(resize(image, tile, settings.resample)[None])
    columns, rows = geometry.best_canvas(image.shape[0], image.shape[1], tile, settings.min_tiles, settings.max_tiles)
    canvas = resize(image, (rows * tile[0], columns * tile[1]), settings.resample)
    tiles = cut(canvas, rows, columns, tile)
    if len(tiles) > 1:
        tiles.append(resize(image, tile, settings.resample))
    return Tiles(np.stack(tiles), rows, columns)


def crop_tiles(image: np.ndarray, settings: CropSettings) -> Tiles:
    """CLIP and its like: one resized and centre-cropped tile."""
    if settings.pad_to_square:
        image = pad_to_square(image, tuple(int(value * 255) for value in settings.mean))
    size = (settings.height, settings.width)
    if settings.shortest_edge:
        size = geometry.shortest_edge_size(image.shape[0], image.shape[1], settings.shortest_edge)
    image = resize(image, size, settings.resample)
    if settings.crop_height:
        image = center_crop(image, (settings.crop_height, settings.crop_width))
    return Tiles(image[None])


def image_tiles(image: np.ndarray, settings: ImageSettings) -> Tiles:
    """Tiles of one [height, width, 3] uint8 image under a tile family's settings."""
    if isinstance(settings, SplitSettings):
        return split_tiles(image, settings)
    if isinstance(settings, CanvasSettings):
        return canvas_tiles(image, settings)
    assert isinstance(settings, CropSettings)
    return crop_tiles(image, settings)


def image_patches(image: np.ndarray, settings: GridSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Qwen: patches [h*w, 3*temporal_patch*patch*patch] float32 of an image, and its grid (1, h, w) before merging."""
    factor = settings.patch_size * settings.merge_size
    size = geometry.grid_size(image.shape[0], image.shape[1], factor, settings.min_pixels, settings.max_pixels)
    frame = normalize(resize(image, size, settings.resample)[None], settings)
    return _patches(np.broadcast_to(frame, (settings.temporal_patch_size, *frame.shape[1:])), settings)


class VideoPatches(Sequence[np.ndarray]):
    """Qwen: patches [h*w, 3*temporal_patch*patch*patch] float32 of each grid frame, made when it is asked for.

    frames [T, height, width, 3] uint8 in the size of `video_frame_size`; the last one is repeated until
    `temporal_patch_size` divides their number. `grid` (t, h, w) counts patches before merging. A long video thus never
    stands in memory as floats.
    """

    def __init__(self, frames: np.ndarray, settings: GridSettings):
        self.frames, self.settings = frames, settings
        patch, step = settings.patch_size, settings.temporal_patch_size
        self.grid = (-(-len(frames) // step), frames.shape[1] // patch, frames.shape[2] // patch)

    def __len__(self) -> int:
        """Grid frames."""
        return self.grid[0]

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """The patches of one grid frame (or of several)."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        step = self.settings.temporal_patch_size
        first = index % len(self) * step
        chosen = [min(first + i, len(self.frames) - 1) for i in range(step)]
        return _patches(normalize(self.frames[chosen], self.settings), self.settings)[0]


def video_frame_size(frames: int, height: int, width: int, settings: VideoSettings) -> geometry.Size:
    """Height and width of every resized frame of a Qwen video."""
    grid = settings.frames
    assert isinstance(grid, GridSettings)
    step, factor, most = grid.temporal_patch_size, grid.patch_size * grid.merge_size, grid.max_pixels
    floor = int(grid.min_pixels * 1.05)
    if not grid.volume:
        if settings.cap_pixels_per_frame:
            budget = int(settings.max_video_tokens * factor * factor * 0.9)
            most = max(min(most, budget * step // frames), floor)
        return geometry.grid_size(height, width, factor, grid.min_pixels, most)
    frames = max(frames, step)  # a single frame is repeated
    if settings.cap_pixels_per_frame:
        most = frames * max(min(settings.max_video_tokens * factor * factor, most // frames), floor)
    return geometry.volume_size(frames, height, width, step, factor, grid.min_pixels, most)


def _patches(frames: np.ndarray, settings: GridSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
    """[T, 3, H, W] float32 to patches in merge-block order and the grid (t, h, w)."""
    patch, merge, step = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    t, h, w = frames.shape[0] // step, frames.shape[2] // patch, frames.shape[3] // patch
    blocks = frames.reshape(t, step, 3, h // merge, merge, patch, w // merge, merge, patch)
    blocks = blocks.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)  # t, row, column, inner row, inner column, channel, step, y, x
    return np.ascontiguousarray(blocks.reshape(t * h * w, 3 * step * patch * patch)), (t, h, w)
