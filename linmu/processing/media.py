"""One image or video made ready: the text for its placeholder, its grid in tokens, its pixels for the vision graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from linmu.errors import InputError
from linmu.layout.types import MediaGrid
from linmu.processing import expand, vision
from linmu.processing.images import ImageSource, load_image, normalize, resize
from linmu.processing.settings import GridSettings, ProcessorSettings, TokenSettings, VideoSettings
from linmu.processing.sources import MediaSource, image_source, video_source
from linmu.processing.video import SAMPLERS, Clip, checked_rate, frames_clip, read_clip

VideoSource = str | Path | np.ndarray


@dataclass(frozen=True)
class Media:
    """`calls`: Qwen: one dict for the vision graph per grid frame; tile families: one with all tiles.

    digest: of linmu.processing.known_media, "" where nobody asked for it.
    """

    text: str
    grid: MediaGrid
    calls: Sequence[dict[str, np.ndarray]]
    digest: str = ""


class LazyCalls(Sequence[dict[str, np.ndarray]]):
    """`number` calls that `make` gives when the first of them is asked for; size: height and width of their tiles."""

    def __init__(self, make: Callable[[], Sequence[dict[str, np.ndarray]]], number: int, size: tuple[int, int]):
        self.make, self.number, self.size = make, number, size
        self._calls: Sequence[dict[str, np.ndarray]] | None = None

    def __len__(self) -> int:
        """The calls."""
        return self.number

    def __getitem__(self, index: Any) -> Any:
        """One call (or several); raises what `make` raises."""
        if self._calls is None:
            self._calls = self.make()
        return self._calls[index]


class GridCalls(Sequence[dict[str, np.ndarray]]):
    """One call of the vision graph per grid frame, made from `frames` (patches of each) when it is asked for."""

    def __init__(self, frames: Sequence[np.ndarray], grid: tuple[int, int, int]):
        self.frames, self.grid = frames, np.array([1, *grid[1:]], np.int64)

    def __len__(self) -> int:
        """Grid frames."""
        return len(self.frames)

    def __getitem__(self, index: Any) -> Any:
        """The call of one grid frame."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return {"pixel_values": self.frames[index], "grid": self.grid.copy()}


class ChainedCalls(Sequence[dict[str, np.ndarray]]):
    """The calls of several media (`parts`), one after the other, each made when it is asked for."""

    def __init__(self, parts: Sequence[Sequence[dict[str, np.ndarray]]]):
        self.parts = tuple(parts)
        self.places = [(part, i) for part in self.parts for i in range(len(part))]

    def __len__(self) -> int:
        """All calls."""
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        """One call (or several)."""
        if isinstance(index, slice):
            return [part[i] for part, i in self.places[index]]
        part, i = self.places[index]
        return part[i]


class TileCalls(Sequence[dict[str, np.ndarray]]):
    """One call with the tiles of all media, joined when it is asked for; `parts`: the calls of each medium, one each.

    Raises InputError when their tiles differ in size.
    """

    def __init__(self, parts: Sequence[Sequence[dict[str, np.ndarray]]]):
        self.parts = tuple(parts)
        sizes = sorted({tile_size(calls) for calls in self.parts})
        if len(sizes) > 1:
            raise InputError(
                "tiles of images and frames of videos differ in size",
                got=sizes,
                expected="one size",
                fix="correct the sizes in the model's preprocessor files and convert it again",
            )

    def __len__(self) -> int:
        """1, or 0 without media."""
        return min(len(self.parts), 1)

    def __getitem__(self, index: Any) -> Any:
        """The joined call."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        if len(self.parts) == 1:
            return self.parts[0][0]
        return {"pixel_values": np.concatenate([calls[0]["pixel_values"] for calls in self.parts])}


def tile_size(calls: Sequence[dict[str, np.ndarray]]) -> tuple[int, int]:
    """Height and width of a medium's tiles; (0, 0) for patches."""
    if isinstance(calls, LazyCalls):
        return calls.size
    shape = () if isinstance(calls, GridCalls) else calls[0]["pixel_values"].shape
    return (int(shape[2]), int(shape[3])) if shape else (0, 0)


def prepare(medium: MediaSource, settings: ProcessorSettings) -> Media:
    """Preprocess a picture or a video; InputError when it cannot be read, or the family takes none or not so."""
    settings = medium.settings(settings)
    if medium.kind == "image":
        if settings.image is None:
            raise InputError(f"the family {settings.family} takes no images", fix="leave them out")
        return prepare_image(image_source(medium.source), settings)
    _video_settings(settings)
    return prepare_video(video_source(medium.source), medium.fps, settings)


def prepare_image(source: ImageSource, settings: ProcessorSettings) -> Media:
    """Preprocess one image; InputError when it cannot be read or the family takes none."""
    image, tokens = settings.image, settings.tokens
    if image is None:
        raise InputError(f"the family {settings.family} takes no images", fix="leave them out")
    pixels = np.asarray(load_image(source))
    if isinstance(image, GridSettings):
        patches, grid = vision.image_patches(pixels, image)
        return _grid_media("image", [patches], grid, image.merge_size, tokens)
    tiles = vision.image_tiles(pixels, image)
    shape = (1, tokens.tile_grid[0], tokens.tile_grid[1])
    grid_of_tiles = MediaGrid("image", (shape,) * len(tiles.pixels))
    text = expand.IMAGE_TEXTS[settings.family](tiles, tokens)
    return Media(text, grid_of_tiles, ({"pixel_values": normalize(tiles.pixels, image)},))


def _grid_media(
    kind: str,
    frames: Sequence[np.ndarray],
    grid: tuple[int, int, int],
    merge: int,
    tokens: TokenSettings,
    text: str | None = None,
    seconds: float = 1.0,
) -> Media:
    """Qwen media from the patches [h*w, dim] of each grid frame; `grid` (t, h, w) counts patches before merging."""
    t, h, w = grid
    if text is None:
        text = str(tokens.image if kind == "image" else tokens.video) * (t * h * w // merge**2)
    return Media(text, MediaGrid(kind, ((t, h // merge, w // merge),), seconds), GridCalls(frames, grid))


def take_clip(source: VideoSource, fps: float | None, settings: ProcessorSettings) -> tuple[Clip, float | None]:
    """What the model sees of a video's frames, and its duration in seconds (None for frames given as an array).

    Clip.frames: tile families: tiles [T, n, H, W, 3] uint8; Qwen: resized frames [T, H, W, 3] uint8. A file is sampled
    by the family's rule, at `fps` frames a second where given; an array holds the frames already chosen, `fps` of them
    a second. Each frame is made small when it is read: a clip takes no more memory than what the model sees of it.
    """
    video = _video_settings(settings)
    if isinstance(source, np.ndarray):
        clip = frames_clip(source, fps if fps is not None else video.fps)
        return replace(clip, frames=np.stack([_fitted(frame, len(source), video) for frame in source])), None
    if not isinstance(source, (str, Path)):
        raise InputError("a video", got=type(source).__name__, expected="a file or uint8 frames [T, H, W, 3]")
    if fps is not None:
        # SmolVLM's number of frames stays an upper bound when a rate is asked for; elsewhere the rate decides
        count = video.num_frames if settings.family == "smolvlm" else None
        video = replace(video, fps=checked_rate(fps), num_frames=count)
    clip = read_clip(
        Path(source),
        lambda total, rate: SAMPLERS[settings.family](total, rate, video),
        lambda frame, count: _fitted(frame, count, video),
    )
    return clip, clip.total / clip.fps


def _fitted(frame: np.ndarray, count: int, video: VideoSettings) -> np.ndarray:
    """One of `count` frames as the model sees it: its tiles, or resized."""
    if not isinstance(video.frames, GridSettings):
        return vision.image_tiles(frame, video.frames).pixels
    size = vision.video_frame_size(count, frame.shape[0], frame.shape[1], video)
    return resize(frame, size, video.frames.resample)


def _video_settings(settings: ProcessorSettings) -> VideoSettings:
    if settings.video is None:
        raise InputError(f"the family {settings.family} takes no video", fix="give frames as images, or leave it out")
    return settings.video


def prepare_video(source: VideoSource, fps: float | None, settings: ProcessorSettings) -> Media:
    """Preprocess one video; InputError when it cannot be read or the family takes none."""
    video, tokens = _video_settings(settings), settings.tokens
    clip, duration = take_clip(source, fps, settings)
    if isinstance(video.frames, GridSettings):
        step, merge = video.frames.temporal_patch_size, video.frames.merge_size
        patches = vision.VideoPatches(clip.frames, video.frames)
        grid, text = patches.grid, None
        if settings.family == "qwen3_vl":
            text = expand.qwen3_video_text(clip, tokens, step, grid[1] * grid[2] // merge**2)
        return _grid_media("video", patches, grid, merge, tokens, text, step / clip.sampled_fps)
    tiles = clip.frames.reshape(-1, *clip.frames.shape[2:])
    shape = (len(tiles), tokens.tile_grid[0], tokens.tile_grid[1])
    grid_of_frames = MediaGrid("video", (shape,), 1 / clip.sampled_fps)
    text = expand.VIDEO_TEXTS[settings.family](clip, tokens, duration)
    return Media(text, grid_of_frames, ({"pixel_values": normalize(tiles, video.frames)},))
