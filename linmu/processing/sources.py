"""What people give as a picture or a video: files, bytes, arrays, data URLs, Pillow images, parts of messages."""

from __future__ import annotations

import base64
import binascii
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from linmu.errors import InputError
from linmu.formats.picture_file import opened_picture
from linmu.processing.seen import as_seen
from linmu.processing.settings import GridSettings, ProcessorSettings

KINDS = ("image", "video")
SOURCE_KEYS = ("image", "video", "path", "url", "base64")
# settings of a part of a message that other tools know and that would change the pixels
REFUSED_KEYS = (
    "resized_height",
    "resized_width",
    "nframes",
    "min_frames",
    "max_frames",
    "total_pixels",
    "video_start",
    "video_end",
    "sample_fps",
    "raw_fps",
    "do_resize",
    "max_frame",
    "num_frames",
)
_DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?:;[^;,]*)*?(?P<base64>;base64)?,", re.IGNORECASE)
_LONGEST_PATH = 4096


@dataclass(frozen=True, eq=False)
class MediaSource:
    """A picture or a video of a prompt, and how it is to be sampled.

    source: a file, a Pillow image, encoded bytes, a uint8 array, a data URL; fps: frames a second to take (arrays: at
    which they were taken); min_pixels, max_pixels: limits of the resized picture or frame (Qwen only).
    """

    kind: str
    source: Any
    fps: float | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    kept: bool = False  # the source is a copy of our own

    def settings(self, settings: ProcessorSettings) -> ProcessorSettings:
        """The processor's settings with this medium's own; InputError where the family cannot follow them."""
        pixels = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        limits: dict[str, Any] = {name: value for name, value in pixels.items() if value is not None}
        if not limits:
            return settings
        held = settings.image if self.kind == "image" else settings.video and settings.video.frames
        if not isinstance(held, GridSettings):
            raise InputError(
                f"{next(iter(limits))} of a part of a message",
                got=f"the family {settings.family}",
                expected="a family that takes any size (Qwen-VL)",
                fix="leave it out",
            )
        changed = replace(held, **limits)
        if changed.min_pixels > changed.max_pixels:
            raise InputError(
                "min_pixels of a part of a message",
                got=changed.min_pixels,
                expected=f"at most max_pixels, {changed.max_pixels}",
            )
        if self.kind == "image":
            return replace(settings, image=changed)
        assert settings.video is not None
        return replace(settings, video=replace(settings.video, frames=changed))


def same_source(one: MediaSource, other: MediaSource) -> bool:
    """Whether two media are known to be the same."""
    settings = [(item.kind, item.fps, item.min_pixels, item.max_pixels) for item in (one, other)]
    if settings[0] != settings[1]:
        return False
    first, second = one.source, other.source
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, Image.Image) and isinstance(second, Image.Image):
        return first == second
    if isinstance(first, str | os.PathLike) and isinstance(second, str | os.PathLike):
        return os.fspath(first) == os.fspath(second)
    return isinstance(first, bytes) and first == second


def listed(images: Any) -> list[Any]:
    """`images` of a call as a list: one picture may stand alone."""
    if images is None:
        return []
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike) or not isinstance(images, Sequence):
        return [images]
    return list(images)


def image_source(source: Any) -> Path | Image.Image:
    """A file or a Pillow image from whatever stands for a picture; InputError on anything else."""
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return picture_from_bytes(bytes(source))
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, os.PathLike):
        return Path(os.fsdecode(source))
    if not isinstance(source, str):
        raise InputError(
            "an image",
            got=type(source).__name__,
            expected="a file, encoded bytes, a data URL, a uint8 array or a PIL image",
        )
    if source[:5].lower() == "data:":
        return picture_from_bytes(data_url_bytes(source, "image"))
    return _path(source, "image")


def video_source(source: Any) -> Path | np.ndarray:
    """A file or frames [T, H, W, 3]; InputError on anything else."""
    if isinstance(source, np.ndarray):
        return source
    if isinstance(source, os.PathLike):
        return Path(os.fsdecode(source))
    if isinstance(source, str) and source[:5].lower() != "data:":
        return _path(source, "video")
    got = "a data URL" if isinstance(source, str) else type(source).__name__
    raise InputError("a video", got=got, expected="a file or uint8 frames [T, H, W, 3]", fix="write it to a file")


def picture_from_bytes(data: bytes) -> Image.Image:
    """An RGB image as a person sees it, from the bytes of a picture file; InputError when they are none."""
    with opened_picture(data, "a picture given as bytes") as image:
        return as_seen(image)


def _from_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise InputError(
            "an image as an array",
            got=f"{array.dtype} {list(array.shape)}",
            expected="uint8 [height, width, 3] (RGB), or with 4 (RGBA) or 1 channel, or [height, width]",
        )
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.ndim == 3 and channels == 1 else array))


def data_url_bytes(url: str, kind: str) -> bytes:
    """The bytes of a data URL in base64; InputError when it is none, or names another kind of medium."""
    head = _DATA_URL.match(url)
    if head is None or not head["base64"] or (head["type"] and not head["type"].lower().startswith(f"{kind}/")):
        raise InputError("a data URL", got=repr(url[:40]), expected=f"data:{kind}/...;base64,...")
    text = "".join(url[head.end() :].split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("a data URL", got=f"{len(text)} characters, {error}", expected="base64") from error


def _path(text: str, kind: str) -> Path:
    scheme, sign, _ = text.partition("://")
    if sign and scheme.isalnum():
        raise InputError(f"linmu downloads no {kind}", got=text[:80], expected="a file", fix="save it, give its path")
    if "\0" in text or len(text) > _LONGEST_PATH:
        raise InputError(
            f"no file name of a {kind}",
            got=f"{text[:40]!r} ({len(text)} characters)",
            expected="a path",
            fix="give encoded bytes as bytes, base64 as a data URL",
        )
    return Path(text)


def canonical_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a message with its medium under "image" or "video" (`image_url` and `video_url` parts too).

    Raises InputError for settings that linmu would have to ignore.
    """
    kind = str(part["type"]).removesuffix("_url")
    fields = {key: value for key, value in part.items() if value is not None}
    if kind not in KINDS:
        return fields
    if str(part["type"]).endswith("_url"):
        fields = {"type": kind, **_from_url_part(fields, kind)}
    if unknown := [key for key in REFUSED_KEYS if key in fields]:
        raise InputError(
            f"{unknown[0]!r} in a part of a message",
            got=repr(fields[unknown[0]])[:40],
            expected="fps, min_pixels or max_pixels",
            fix="leave it out, or change the file",
        )
    sources = [key for key in SOURCE_KEYS if key in fields]
    if len(sources) > 1:
        raise InputError(f"a part of a message with several {kind}s", got=", ".join(sources), expected="one of them")
    return fields


def _from_url_part(part: dict[str, Any], kind: str) -> dict[str, Any]:
    """OpenAI's form: {"image_url": {"url": ...}} (or a text in its place)."""
    value = part.pop(f"{kind}_url", None)
    rest = {key: item for key, item in part.items() if key != "type"}
    if isinstance(value, Mapping):
        rest |= {key: item for key, item in value.items() if key != "url"}
        value = value.get("url")
    if not isinstance(value, str):
        raise InputError(f"a part of type {kind}_url", got=repr(value)[:40], expected=f'"{kind}_url": {{"url": ...}}')
    detail = rest.pop("detail", "auto")
    if detail != "auto":
        raise InputError('"detail" of a picture', got=repr(detail), expected='"auto"', fix="leave it out")
    return {kind: value, **rest}


def media_of_part(part: Mapping[str, Any]) -> MediaSource | None:
    """The medium of a canonical part; None for text. A bare placeholder has the source None."""
    kind = part["type"]
    if kind not in KINDS:
        return None
    key = next((key for key in SOURCE_KEYS if key in part), None)
    source = None if key is None else part[key]
    if key == "base64":
        source = f"data:{kind}/;base64,{source}" if isinstance(source, str) else source
    if kind == "image" and "fps" in part:
        raise InputError("'fps' in an image part of a message", got=repr(part["fps"]), fix="leave it out")
    fps = part.get("fps")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf):
        raise InputError("'fps' in a part of a message", got=repr(fps)[:40], expected="frames per second, more than 0")
    return MediaSource(kind, source, fps, _pixels(part, "min_pixels"), _pixels(part, "max_pixels"))


def _pixels(part: Mapping[str, Any], name: str) -> int | None:
    value = part.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 40):
        raise InputError(f"{name!r} in a part of a message", got=repr(value)[:40], expected="a number of pixels")
    return value
