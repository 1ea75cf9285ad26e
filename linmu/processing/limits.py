"""Bounds of processor.json: what no model has would make pictures and prompts of any size."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from math import isfinite
from typing import Any

from linmu.errors import BundleError
from linmu.processing.settings import CanvasSettings, CropSettings, GridSettings, ImageSettings, ProcessorSettings

MOST_SIDE, MOST_PIXELS, MOST_FRAMES, MOST_TILES, MOST_TEXT = 1 << 14, 1 << 28, 100_000, 4096, 4096

# By field name: least and largest; sides of 0 mean "not used" where they may be 0.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("patch_size", "temporal_patch_size", "merge_size", "longest_edge", "tile"), (1, MOST_SIDE)),
    **dict.fromkeys(("height", "width", "shortest_edge", "crop_height", "crop_width"), (0, MOST_SIDE)),
    **dict.fromkeys(("min_pixels", "max_pixels"), (1, MOST_PIXELS)),
    **dict.fromkeys(("min_tiles", "max_tiles"), (1, MOST_TILES)),
    **dict.fromkeys(("num_frames", "min_frames", "max_frames"), (1, MOST_FRAMES)),
    "resample": (0, 5), "rescale_factor": (1e-9, 1e9), "fps": (1e-6, 1e4), "max_video_tokens": (1, MOST_PIXELS),
}  # fmt: skip


def check_limits(settings: ProcessorSettings) -> None:
    """Raise BundleError for a value of processor.json that is out of bounds or contradicts another one."""
    _check(settings, "top level")


def _check(settings: Any, where: str) -> None:
    for field in fields(settings):
        name, value = field.name, getattr(settings, field.name)
        if is_dataclass(value):
            _check(value, f"{where}.{name}")
        elif type(value) in (int, float):
            low, high = RANGES.get(name, (-MOST_PIXELS, MOST_PIXELS))
            if not isfinite(value) or not low <= value <= high:
                raise _bad(f"{where}.{name}", value, f"{low:g} to {high:g}")
        elif isinstance(value, str) and not 0 < len(value) <= MOST_TEXT:
            raise _bad(f"{where}.{name}", f"{len(value)} characters", f"1 to {MOST_TEXT}")
    if isinstance(settings, ImageSettings):
        _check_image(settings, where)
    elif isinstance(settings, ProcessorSettings):
        grid = settings.tokens.tile_grid
        if len(grid) not in (0, 2) or not all(1 <= side <= MOST_SIDE // 16 for side in grid):
            raise _bad("tokens.tile_grid", list(grid), "rows and columns of tokens")
        if not all(0 <= token < 1 << 31 for token in settings.tokens.eos_token_ids):
            raise _bad("tokens.eos_token_ids", list(settings.tokens.eos_token_ids), "token ids")


def _check_image(settings: ImageSettings, where: str) -> None:
    for name, values in (("mean", settings.mean), ("std", settings.std)):
        if len(values) != 3 or not all(isfinite(value) for value in values) or (name == "std" and 0 in values):
            raise _bad(f"{where}.{name}", list(values), "three numbers, of std none 0")
    if isinstance(settings, GridSettings):
        unit = settings.patch_size * settings.merge_size
        if settings.min_pixels > settings.max_pixels or unit**2 > settings.max_pixels:
            raise _bad(f"{where}.max_pixels", settings.max_pixels, f"at least min_pixels and {unit}^2")
    elif isinstance(settings, CanvasSettings):
        if settings.min_tiles > settings.max_tiles or not settings.height or not settings.width:
            raise _bad(where, f"{settings.height} x {settings.width}", "a canvas of at least one tile")
    elif isinstance(settings, CropSettings):
        sides = (settings.height, settings.width)
        if not settings.shortest_edge and 0 in sides or (settings.crop_height == 0) != (settings.crop_width == 0):
            raise _bad(where, sides, "shortest_edge, or height and width; both sides of a crop or none")


def _bad(where: str, got: object, expected: str) -> BundleError:
    return BundleError(f"{where} in processor.json", got=got, expected=expected, fix="export the bundle again")
