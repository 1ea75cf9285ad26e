"""Opening pictures that somebody else made: regular files, formats that only decode, sizes known before decoding."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from linmu.errors import InputError
from linmu.files.regular import regular_file

# PostScript would start Ghostscript; formats that nobody photographs or draws in are only ways in.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
EXPECTED = "a whole PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, AVIF or JPEG 2000 picture"
MAX_BYTES = 2**30  # of a file: some formats are read whole
MAX_PIXELS = 2**26  # 67 megapixels, decoded to 4 bytes each
MAX_JPEG_PIXELS = 2**28  # 268 megapixels: JPEG can be decoded at 1/2, 1/4 or 1/8 of its size

# what Pillow's decoders raise on damaged files
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    MemoryError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@contextmanager
def opened_picture(source: Path | bytes, what: str = "the image") -> Iterator[Image.Image]:
    """The picture of a file, or of an encoded file's bytes, opened and not yet decoded; at most MAX_PIXELS large.

    A baseline JPEG of up to MAX_JPEG_PIXELS is set to decode at the largest half, quarter or eighth that fits.
    Raises InputError, which calls it `what`, when it is no regular file, empty, of no format in FORMATS, too large,
    or when Pillow fails on it while the context is open.
    """
    if isinstance(source, bytes):
        named, size = what, len(source)
    else:
        named, size = f"{what} {source}", regular_file(source, what).stat().st_size
    if not 0 < size <= MAX_BYTES:
        raise InputError(f"cannot read {named}", got=f"{size} bytes", expected=f"1 to {MAX_BYTES} bytes")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
            with _identified(stream) as image:
                _fit(image, named)
                yield image
    except DECODE_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"cannot read {named}", got=f"{size} bytes, {reason}", expected=EXPECTED) from error


@lru_cache(maxsize=1)
def _openers() -> tuple[tuple[Any, Any], ...]:
    """Pillow's (factory, accept) of each format that this Pillow has."""
    Image.init()
    return tuple(Image.OPEN[name] for name in FORMATS if name in Image.OPEN)


def _identified(stream: BinaryIO) -> Image.Image:
    """What Image.open does with a list of formats, without its own bound on pixels.

    That one warns on standard error from 89 megapixels, and from 179 refuses even a JPEG that could be decoded small.
    """
    prefix = stream.read(16)
    for factory, accept in _openers():
        if accept is None or accept(prefix) is True:
            stream.seek(0)
            try:
                image: Image.Image = factory(stream, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # Pillow's way of saying "not mine"
            return image
    raise UnidentifiedImageError("no picture of a known format")


def _fit(image: Image.Image, named: str) -> None:
    """Refuse a picture that is too large, or ask JPEG for a smaller one."""
    width, height = image.size
    # a progressive JPEG stands in memory whole before its first pixel can be shown
    scalable = image.format in ("JPEG", "MPO") and not image.info.get("progressive")
    most = MAX_JPEG_PIXELS if scalable else MAX_PIXELS
    if not 0 < width * height <= most:
        raise InputError(
            f"{named} is too large" if width * height else f"{named} is empty",
            got=f"{width}x{height} pixels, {width * height / 1e6:,.0f} million",
            expected=f"at most {most / 1e6:,.0f} million pixels",
            fix="scale it down" if scalable else "scale it down, or save it as a baseline JPEG",
        )
    if width * height > MAX_PIXELS:
        scale = next(scale for scale in (2, 4, 8) if width * height <= MAX_PIXELS * scale**2)
        image.draft(None, (width // scale, height // scale))
