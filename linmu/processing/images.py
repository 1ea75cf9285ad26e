"""Images: reading files, resizing, cropping and normalising, on numpy arrays [height, width, 3] uint8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from linmu.errors import InputError
from linmu.formats.picture_file import DECODE_ERRORS, MAX_JPEG_PIXELS, opened_picture
from linmu.processing.geometry import Size
from linmu.processing.seen import as_seen
from linmu.processing.settings import ImageSettings

ImageSource = str | Path | Image.Image
MAX_RESIZED_PIXELS = 2**28  # a resize beyond this (3/4 GiB) comes from a degenerate shape, not from a picture


def load_image(source: ImageSource) -> Image.Image:
    """An RGB image as a person sees it (`seen.as_seen`), from a file or a Pillow image.

    Raises InputError naming the file when it is missing, empty, truncated, too large or no image.
    """
    if isinstance(source, Image.Image):
        if source.width * source.height > MAX_JPEG_PIXELS or 0 in source.size:
            raise InputError(
                "an image's size", got=f"{source.width}x{source.height}", expected=f"1 to {MAX_JPEG_PIXELS} pixels"
            )
        try:
            return as_seen(source)
        except DECODE_ERRORS as error:
            raise InputError("cannot convert an image to RGB", got=f"mode {source.mode}: {error}") from error
    if not isinstance(source, (str, Path)):
        raise InputError("an image", got=type(source).__name__, expected="a file or a PIL image")
    with opened_picture(Path(source)) as image:
        return as_seen(image)


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
