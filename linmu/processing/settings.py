"""What `processor.json` holds: frozen dataclasses, read strictly (an unknown or missing key is an error)."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from linmu.errors import BundleError, InputError
from linmu.files.regular import regular_file

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What every kind of image preprocessing shares.

    mean, std: per RGB channel, of pixels scaled by `rescale_factor`; resample: Pillow's filter number.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int
    rescale_factor: float = 1 / 255
    do_rescale: bool = True
    do_normalize: bool = True


@dataclass(frozen=True, kw_only=True)
class GridSettings(ImageSettings):
    """Qwen: any size that `patch_size * merge_size` divides, `min_pixels` to `max_pixels`, cut into patches.

    volume: the pixel limits count all frames of a video together (Qwen3-VL), not each frame.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    volume: bool = False


@dataclass(frozen=True, kw_only=True)
class SplitSettings(ImageSettings):
    """Idefics3 and SmolVLM: longest edge to `longest_edge`, then square tiles of `tile` pixels and a thumbnail."""

    longest_edge: int
    tile: int
    split: bool = True


@dataclass(frozen=True, kw_only=True)
class CanvasSettings(ImageSettings):
    """InternVL: the canvas of `min_tiles` to `max_tiles` tiles nearest in shape, and a thumbnail when more than one."""

    height: int
    width: int
    min_tiles: int = 1
    max_tiles: int = 12


@dataclass(frozen=True, kw_only=True)
class CropSettings(ImageSettings):
    """CLIP, Dinov2, SigLIP: resize (shortest edge, or to height x width), then an optional centre crop.

    shortest_edge 0: resize to `height` x `width`; crop_height 0: no crop; pad_to_square: with the mean colour, first.
    """

    shortest_edge: int = 0
    height: int = 0
    width: int = 0
    crop_height: int = 0
    crop_width: int = 0
    pad_to_square: bool = False


IMAGE_KINDS: dict[str, type[ImageSettings]] = {
    "grid": GridSettings,
    "split": SplitSettings,
    "canvas": CanvasSettings,
    "crop": CropSettings,
}


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """Which frames of a video are taken and how each is preprocessed.

    fps: frames per second to take; num_frames: how many to take at most (SmolVLM) or exactly (InternVL);
    cap_pixels_per_frame, max_video_tokens: Qwen's bound on the pixels of long videos.
    """

    frames: ImageSettings
    fps: float | None = None
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768
    cap_pixels_per_frame: bool = False
    max_video_tokens: int = 768


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """Special tokens as text.

    template_variables: names the chat template may use; image, video: the placeholders in a rendered prompt;
    tile_grid: rows and columns of tokens of one tile (empty for grid families);
    chat_adds_special_tokens: a rendered chat still gets the tokenizer's own special tokens.
    """

    eos_token_ids: tuple[int, ...]
    template_variables: dict[str, str]
    chat_adds_special_tokens: bool
    image: str | None = None
    video: str | None = None
    vision_start: str | None = None
    vision_end: str | None = None
    fake_image: str | None = None
    global_image: str | None = None
    tile_grid: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProcessorSettings:
    """All of `processor.json`."""

    family: str
    tokens: TokenSettings
    image: ImageSettings | None = None
    video: VideoSettings | None = None
    format_version: int = FORMAT_VERSION


def to_json(settings: Any) -> dict[str, Any]:
    """A settings dataclass as a JSON dict; image settings carry their "kind"."""
    data: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        value = list(value) if isinstance(value, tuple) else value
        data[field.name] = to_json(value) if is_dataclass(value) else value
    for kind, cls in IMAGE_KINDS.items():
        if type(settings) is cls:
            return {"kind": kind, **data}
    return data


def from_json(cls: type, data: Any, where: str) -> Any:
    """Read `to_json`'s form of a settings class; raises BundleError naming the key that is wrong."""
    if not isinstance(data, dict):
        raise BundleError(f"{where} in processor.json", got=type(data).__name__, expected="an object")
    if cls is ImageSettings:
        data = dict(data)
        kind = data.pop("kind", None)
        if not isinstance(kind, str) or kind not in IMAGE_KINDS:
            raise BundleError(f"{where}.kind in processor.json", got=repr(kind), expected=f"one of {list(IMAGE_KINDS)}")
        cls = IMAGE_KINDS[kind]
    hints = typing.get_type_hints(cls)
    if unknown := sorted(set(data) - set(hints)):
        raise BundleError(f"unknown key in processor.json, {where}", got=unknown, expected=sorted(hints))
    needed = {field.name for field in fields(cls) if field.default is MISSING}
    if missing := sorted(needed - set(data)):
        raise BundleError(f"missing key in processor.json, {where}", got=sorted(data), expected=missing)
    return cls(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` checked against a field's type; numbers are not strings and booleans are not numbers."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _value(arguments[0], value, where)
    if isinstance(hint, type) and is_dataclass(hint):
        return from_json(hint, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], item, where) for item in value)
    if origin is dict and isinstance(value, dict):
        return {str(key): _value(arguments[1], item, where) for key, item in value.items()}
    if hint is float and (type(value) is float or (type(value) is int and abs(value) < 2**53)):
        return float(value)
    if hint in (int, bool, str) and type(value) is hint:
        return value
    raise BundleError(f"{where} in processor.json", got=repr(value)[:80], expected=str(getattr(hint, "__name__", hint)))


def read_json(path: Path) -> Any:
    """The JSON document of a file; raises InputError naming the file."""
    try:
        if not path.exists():
            raise InputError("a file is missing", got=path, expected="a readable JSON file")
        return json.loads(regular_file(path, path.name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}", got=error, expected="a JSON document in UTF-8") from error
