"""What the values of a `processor.json` must be before anything is computed with them."""

from __future__ import annotations

from typing import Any

from linmu.errors import BundleError
from linmu.families import get_family
from linmu.processing.settings import (
    CanvasSettings,
    CropSettings,
    GridSettings,
    ImageSettings,
    ProcessorSettings,
    SplitSettings,
    TokenSettings,
    VideoSettings,
)

# far beyond any model, and small enough for what is computed with them
MOST_EDGE, MOST_PIXELS, MOST_TILES, MOST_FRAMES, MOST_CELLS = 2**12, 2**31, 2**8, 2**16, 2**10
SMALLEST, LARGEST = 1e-9, 1e9  # of factors: pixels stay finite in float32
PILLOW_FILTERS = range(6)
MOST_TEXT = 2**12  # characters of a placeholder, which a prompt may hold a thousand times
KIND_OF_FAMILY: dict[str, type[ImageSettings]] = {
    "qwen2_5_vl": GridSettings,
    "qwen3_vl": GridSettings,
    "smolvlm": SplitSettings,
    "idefics3": SplitSettings,
    "internvl": CanvasSettings,
    "llava": CropSettings,
}
VIDEO_FAMILIES = ("qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl")
NEEDED_TOKENS = {
    "qwen2_5_vl": ("vision_start", "vision_end"),
    "qwen3_vl": ("vision_start", "vision_end"),
    "smolvlm": ("fake_image", "global_image"),
    "idefics3": ("fake_image", "global_image"),
    "internvl": ("vision_start", "vision_end"),
}


def check_settings(settings: ProcessorSettings) -> None:
    """Raise BundleError, naming the key, for a value that no model has or that does not fit the family."""
    get_family(settings.family)
    if settings.image is not None:
        _check_image(settings.image, settings.family, "image")
    if settings.video is not None:
        if settings.family not in VIDEO_FAMILIES:
            raise _wrong("video", "settings", f"null for {settings.family}")
        _check_video(settings.video, settings.family)
    _check_tokens(settings)


def _wrong(key: str, got: object, expected: str) -> BundleError:
    return BundleError(f"{key} in processor.json", got=f"{got!r:.80}", expected=expected)


def _within(settings: Any, where: str, low: int, high: int, *names: str) -> None:
    """Numbers of a settings object, inclusive; None passes."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            raise _wrong(f"{where}.{name}", value, f"{low} to {high}")


def _check_image(image: ImageSettings, family: str, where: str) -> None:
    kind = KIND_OF_FAMILY.get(family)
    if kind is None or type(image) is not kind:
        raise _wrong(f"{where}.kind", type(image).__name__, f"{kind.__name__ if kind else 'no images'} for {family}")
    for name, values, least in (("mean", image.mean, 0.0), ("std", image.std, SMALLEST)):
        if len(values) != 3 or not all(least <= abs(value) <= LARGEST for value in values):
            raise _wrong(f"{where}.{name}", values, f"three numbers, one per colour, {least:g} to {LARGEST:g}")
    if not SMALLEST <= abs(image.rescale_factor) <= LARGEST:
        raise _wrong(f"{where}.rescale_factor", image.rescale_factor, f"{SMALLEST:g} to {LARGEST:g}")
    if image.resample not in PILLOW_FILTERS:
        raise _wrong(f"{where}.resample", image.resample, "0 to 5, Pillow's number of a filter")
    if isinstance(image, GridSettings):
        _within(image, where, 1, MOST_EDGE, "patch_size")
        _within(image, where, 1, 64, "temporal_patch_size", "merge_size")
        _within(image, where, 1, MOST_PIXELS, "min_pixels", "max_pixels")
        if image.min_pixels > image.max_pixels:
            raise _wrong(f"{where}.min_pixels", image.min_pixels, f"at most max_pixels ({image.max_pixels})")
    elif isinstance(image, SplitSettings):
        _within(image, where, 1, MOST_EDGE, "longest_edge", "tile")
    elif isinstance(image, CanvasSettings):
        _within(image, where, 1, MOST_EDGE, "height", "width")
        _within(image, where, 1, MOST_TILES, "min_tiles", "max_tiles")
        if image.min_tiles > image.max_tiles:
            raise _wrong(f"{where}.min_tiles", image.min_tiles, f"at most max_tiles ({image.max_tiles})")
    elif isinstance(image, CropSettings):
        _check_crop(image, where)


def _check_crop(image: CropSettings, where: str) -> None:
    _within(image, where, 0, MOST_EDGE, "shortest_edge", "height", "width", "crop_height", "crop_width")
    if not image.shortest_edge and not (image.height and image.width):
        raise _wrong(f"{where}.shortest_edge", 0, "a size, here or as height and width")
    if bool(image.crop_height) != bool(image.crop_width) or (image.shortest_edge and not image.crop_height):
        raise _wrong(f"{where}.crop_height", (image.crop_height, image.crop_width), "height and width of a crop")


def _check_video(video: VideoSettings, family: str) -> None:
    _check_image(video.frames, family, "video.frames")
    if video.fps is not None and not 1e-6 <= video.fps <= 1e6:
        raise _wrong("video.fps", video.fps, "frames per second, more than 0")
    _within(video, "video", 1, MOST_FRAMES, "num_frames", "min_frames", "max_frames")
    _within(video, "video", 1, MOST_PIXELS, "max_video_tokens")


def _check_tokens(settings: ProcessorSettings) -> None:
    tokens: TokenSettings = settings.tokens
    for number in tokens.eos_token_ids:
        if not 0 <= number < 2**31:
            raise _wrong("tokens.eos_token_ids", tokens.eos_token_ids, "ids")
    for name in ("image", "video", "vision_start", "vision_end", "fake_image", "global_image"):
        text = getattr(tokens, name)
        if text is not None and not 0 < len(text) <= MOST_TEXT:
            raise _wrong(f"tokens.{name}", text, f"a text of at most {MOST_TEXT} characters, or null")
    if settings.image is None:
        return
    needed = ["image", *NEEDED_TOKENS.get(settings.family, ()), *(["video"] if settings.video is not None else [])]
    if missing := [name for name in needed if getattr(tokens, name) is None]:
        raise _wrong(f"tokens.{missing[0]}", None, f"a text for {settings.family}")
    sides = 0 if isinstance(settings.image, GridSettings) else 2
    if len(tokens.tile_grid) != sides or not all(1 <= side <= MOST_CELLS for side in tokens.tile_grid):
        raise _wrong("tokens.tile_grid", tokens.tile_grid, f"{sides} counts from 1 to {MOST_CELLS}")
