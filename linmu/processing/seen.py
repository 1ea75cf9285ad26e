"""A picture as a person sees it: upright, in RGB, with the range of its numbers and what lies behind transparency."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

WHITE, BLACK = (255, 255, 255, 255), (0, 0, 0, 255)
EDGE = 32  # grey levels between two neighbours that an eye tells apart
ROWS = 256
LOOKED_AT = 1024  # pixels of the longer side when edges are counted
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def as_seen(image: Image.Image) -> Image.Image:
    """An RGB copy: EXIF orientation applied, deep greys scaled to 8 bits, transparency laid on white or black.

    The first frame of an animation. Raises what Pillow raises for modes without a way to RGB (LAB) and damaged data.
    """
    image.load()  # TIFF turns itself while loading
    turn = _TURNS.get(_orientation(image))
    if image.mode in (*SIXTEEN_BITS, "I", "F"):
        image = _eight_bits(image)
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = _on_background(image.convert("RGBA"))
    image = image.convert("RGB")
    image = image if turn is None else image.transpose(turn)
    image.info = {}  # seen again, nothing of it may be turned or laid on a colour again
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF's number; 1 where there is none or it cannot be read: a viewer shows such a picture as it lies."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError):
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats as L (LA where one level is transparent); Pillow alone would clip at 255.

    The range is the file's own (0..65535 of 16-bit PNG, TIFF and PGM). Where the file has none, it is the smallest of
    0..1 (floats), 0..255 and 0..65535 that holds all values, else the values' own. What is not a number is black.
    """
    values = np.asarray(image)
    low, high = _range(image, values)
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), ROWS):  # in pieces: doubles of a whole picture take gigabytes
        with np.errstate(invalid="ignore", over="ignore"):
            levels = (values[top : top + ROWS].astype(np.float64) - low) * (255 / max(high - low, 1e-300))
        grey[top : top + ROWS] = np.nan_to_num(levels, nan=0.0).clip(0, 255).round()
    picture = Image.fromarray(grey)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        picture.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return picture


def _range(image: Image.Image, values: np.ndarray) -> tuple[float, float]:
    """The values that are black and white."""
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 0.0, 65535.0
    finite = np.isfinite(values)
    if not finite.any():
        return 0.0, 1.0
    low, high = float(values[finite].min()), float(values[finite].max())
    tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next(((0.0, top) for top in tops if low >= 0 and high <= top), (low, high))


def _on_background(image: Image.Image) -> Image.Image:
    """An RGBA picture on white, or on black when white would hide most of it (white letters, white drawings)."""
    if image.getchannel("A").getextrema() == (255, 255):
        return image
    small = image.reduce(max(1, max(image.size) // LOOKED_AT))
    on_white, on_black = (_edges(_laid_on(small, colour)) for colour in (WHITE, BLACK))
    return _laid_on(image, BLACK if on_black > 2 * on_white else WHITE)


def _laid_on(image: Image.Image, colour: tuple[int, int, int, int]) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image)


def _edges(image: Image.Image) -> int:
    """Pairs of neighbouring pixels that differ visibly."""
    grey = np.asarray(ImageOps.grayscale(image)).astype(np.int16)
    return sum(int(np.count_nonzero(np.abs(np.diff(grey, axis=axis)) > EDGE)) for axis in (0, 1))
