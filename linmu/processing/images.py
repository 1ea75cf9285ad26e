"""Images: reading files, resizing, cropping and normalising, on numpy arrays [height, width, 3] uint8."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from linmu.errors import InputError
from linmu.processing.geometry import Size
from linmu.processing.settings import ImageSettings

ImageSource = str | Path | Image.Image
MAX_RESIZED_PIXELS = 2**28  # a resize beyond this (3/4 GiB) comes from a degenerate shape, not from a picture

# what Pillow's decoders raise on damaged files
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, OverflowError, MemoryError, struct.error,
    zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def load_image(source: ImageSource) -> Image.Image:
    """An RGB image from a file (EXIF orientation applied, transparency dropped) or from a Pillow image.

    A Pillow image is taken as it stands, transparency laid on white: what transformers does with either.
    Raises InputError naming the file when it is missing, empty, truncated, too large or no image.
    """
    if isinstance(source, Image.Image):
        try:
            return _on_white(source)
        except _DECODE_ERRORS as error:
            raise InputError("cannot convert an image to RGB", got=f"mode {source.mode}: {error}") from error
    if not isinstance(source, (str, Path)):
        raise InputError("an image", got=type(source).__name__, expected="a file or a PIL image")
    path = Path(source)
    if not path.is_file():
        raise InputError("cannot find the image", got=path, expected="a file")
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            return upright.convert("RGB")
    except _DECODE_ERRORS as error:
        size = path.stat().st_size
        raise InputError(
            f"cannot read the image {path}", got=f"{size} bytes, {error}", expected="a whole PNG, JPEG, WebP, ... file"
        ) from error


def _on_white(image: Image.Image) -> Image.Image:
    """An RGB copy of a Pillow image with its transparency laid on white."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def resize(image: np.ndarray, size: Size, resample: int) -> np.ndarray:
    """Resize [height, width, 3] uint8 to `size` with Pillow's filter number `resample`; InputError on absurd sizes."""
    height, width = size
    if height < 1 or width < 1 or height * width > MAX_RESIZED_PIXELS:
        raise InputError(
            "an image's shape does not suit this model",
            got=f"{image.shape[1]}x{image.shape[0]} pixels, {width}x{height} after resizing",
            expected=f"at most {MAX_RESIZED_PIXELS} pixels",
            fix="crop it to a less extreme shape",
        )
    return np.asarray(Image.fromarray(image).resize((width, height), resample=Image.Resampling(resample)))


def center_crop(image: np.ndarray, size: Size) -> np.ndarray:
    """The middle `size` (height, width) of an image, padded with zeros where the image is smaller."""
    for axis, wanted in enumerate(size):
        have = image.shape[axis]
        start = (have - wanted) // 2
        if have < wanted:
            before = -(-(wanted - have) // 2)
            padding = [(0, 0)] * 3
            padding[axis] = (before, wanted - have - before)
            image = np.pad(image, padding)
        else:
            image = image[start : start + wanted] if axis == 0 else image[:, start : start + wanted]
    return image


def pad_to_square(image: np.ndarray, color: tuple[int, ...]) -> np.ndarray:
    """The image centred on a square of its longest edge, filled with `color`."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = np.asarray(color, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def normalize(images: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Scale and normalise [n, height, width, 3] uint8 to [n, 3, height, width] float32."""
    levels = np.arange(256, dtype=np.float64)
    scaled = (levels * settings.rescale_factor if settings.do_rescale else levels).astype(np.float32)
    table = np.repeat(scaled[None], 3, axis=0)
    if settings.do_normalize:
        mean, std = (np.asarray(value, np.float32)[:, None] for value in (settings.mean, settings.std))
        table = (table - mean) / std
    out = np.empty((images.shape[0], 3, *images.shape[1:3]), np.float32)
    for channel in range(3):  # 256 possible values each: a look-up is exact and needs no float copies
        np.take(table[channel], images[..., channel], out=out[:, channel])
    return out
