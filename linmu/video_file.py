"""Opening videos that somebody else made (PyAV): regular files, containers that refer to nothing outside themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from linmu.errors import InputError, MissingComponentError
from linmu.regular_file import regular_file

# FFmpeg's names. Not playlists (hls, dash, concat, sdp), which read other files and open sockets, nor devices.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,ogg,flv,asf"
EXPECTED = "an MP4, MOV, WebM, MKV, AVI, GIF, MPEG, Ogg, FLV or WMV file"
MAX_FRAME_PIXELS = 2**26  # 67 megapixels; 8K has 33
READ_BYTES = 2**18  # at a time
WIDEST_PIXEL = 4  # a pixel's shape beyond 4:1 is a damaged header


def _refuse(url: str, flags: int, options: dict[str, str]) -> Any:
    """What FFmpeg calls to open a file named in a file."""
    raise PermissionError("it refers to another file")


REFUSALS: dict[str, Any] = {"io_open": _refuse, "metadata_errors": "replace"}  # names and tags of any encoding
FAILURES = (OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)


@contextmanager
def opened_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's (container, first stream of moving pictures) of a file.

    FFmpeg gets an open file and never a name, so nothing is taken for a URL. Raises InputError when it is no regular
    file, of another format, without pictures, or when FFmpeg fails on it while the context is open;
    MissingComponentError without PyAV.
    """
    try:
        import av
    except ImportError as error:
        raise MissingComponentError("PyAV (av)", needed_for="reading video files", extra="video") from error
    size = regular_file(path, "the video").stat().st_size
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "", "max_pixels": str(MAX_FRAME_PIXELS)}
    try:
        with path.open("rb") as file:
            with av.open(file, options=options, buffer_size=READ_BYTES, **REFUSALS) as container:
                stream = _moving_pictures(container)
                if stream is None:
                    raise InputError(f"no pictures in the video {path}", expected="a video stream")
                _check_size(stream.width, stream.height, path)
                stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
                yield container, stream
    except (av.FFmpegError, *FAILURES) as error:
        reason = str(getattr(error, "strerror", None) or error or type(error).__name__)[:200]
        raise InputError(f"cannot read the video {path}", got=f"{size} bytes, {reason}", expected=EXPECTED) from error


def _moving_pictures(container: Any) -> Any:
    """The first video stream that is no cover picture; a cover where there is nothing else."""
    streams = list(container.streams.video)
    covers = [stream for stream in streams if "attached_pic" in str(getattr(stream, "disposition", ""))]
    return next((stream for stream in streams if stream not in covers), covers[0] if covers else None)


def _check_size(width: int, height: int, path: Path) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise InputError(
            f"the video {path} is too large", got=f"{width}x{height} pixels",
            expected=f"at most {MAX_FRAME_PIXELS / 1e6:,.0f} million pixels a frame", fix="scale it down",
        )  # fmt: skip


def frame_as_seen(frame: Any, pixel_shape: Any = None) -> np.ndarray:
    """A decoded frame as a player shows it: RGB [height, width, 3] uint8, transparency on white, turned and mirrored.

    How to turn it is the display matrix of the file (phones write their clips lying and say how they were held).
    pixel_shape: width of a pixel over its height, where it is not 1 (television); the shorter side is stretched.
    """
    if any(component.is_alpha for component in frame.format.components):
        rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
        colour, alpha = rgba[..., :3], rgba[..., 3:]
        pixels = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    else:
        pixels = frame.to_ndarray(format="rgb24")
    pixels = _stretched(pixels, float(pixel_shape or 1))
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return turned(pixels, np.frombuffer(bytes(data), np.int32)[:9])
    return pixels


def _stretched(pixels: np.ndarray, shape: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    wide, high = (round(width * shape), height) if shape > 1 else (width, round(height / shape))
    if not 1 / WIDEST_PIXEL <= shape <= WIDEST_PIXEL or (wide, high) == (width, height):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((wide, high), Image.Resampling.BICUBIC))


def turned(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """[height, width, ...] pixels under a display matrix [9] int32, rounded to quarter turns and mirrors.

    The matrix maps a pixel in column x, row y to column a x + c y, row b x + d y, where a, b, c, d are its entries 0,
    1, 3, 4 (ISO/IEC 14496-12). One that maps everything to a line is ignored.
    """
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    if a * d - b * c == 0:
        return pixels
    if abs(a * d) < abs(b * c):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
