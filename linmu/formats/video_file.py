"""Opening videos that somebody else made (PyAV): regular files, containers that refer to nothing outside themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from linmu.errors import InputError, MissingComponentError
from linmu.files.regular import regular_file
from linmu.formats.mp4_boxes import check_samples

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


class _Reader:
    """What FFmpeg gets of an open file: no name, and a number where a place before its start is asked for."""

    def __init__(self, file: BinaryIO):
        self.read, self.tell, self._file = file.read, file.tell, file

    def seek(self, offset: int, whence: int = 0) -> int:
        """The new place; -1 where there is none: PyAV prints exceptions that it cannot pass on."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


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
            check_samples(file, size, path)
            with av.open(_Reader(file), options=options, buffer_size=READ_BYTES, **REFUSALS) as container:
                stream = moving_pictures(container)
                if stream is None:
                    raise InputError(f"no pictures in the video {path}", expected="a video stream")
                if getattr(stream, "codec_context", None) is None:
                    raise InputError(f"cannot read the video {path}", got="an unknown codec", fix="encode it as H.264")
                check_size(stream.width, stream.height, path)
                stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
                yield container, stream
    except (av.FFmpegError, *FAILURES) as error:
        reason = str(getattr(error, "strerror", None) or error or type(error).__name__)[:200]
        raise InputError(f"cannot read the video {path}", got=f"{size} bytes, {reason}", expected=EXPECTED) from error


def moving_pictures(container: Any) -> Any:
    """The first video stream that is no cover picture; a cover where there is nothing else."""
    streams = list(container.streams.video)
    covers = [stream for stream in streams if "attached_pic" in str(getattr(stream, "disposition", ""))]
    return next((stream for stream in streams if stream not in covers), covers[0] if covers else None)


def check_size(width: int, height: int, path: Path | str) -> None:
    """Raise InputError for frames that take too much memory."""
    if width * height > MAX_FRAME_PIXELS:
        raise InputError(
            f"the video {path} is too large",
            got=f"{width}x{height} pixels",
            expected=f"at most {MAX_FRAME_PIXELS / 1e6:,.0f} million pixels a frame",
            fix="scale it down",
        )


class Screen:
    """Shows the frames of one stream as a player does: upright, whole, transparency on white.

    How to turn a frame is the display matrix of the file: phones write their clips lying and say how they were held.
    """

    def __init__(self, stream: Any):
        self.pixel_shape = float(stream.sample_aspect_ratio or 1)  # width over height: not 1 in television
        self._rotation: int | None = None
        self._matrix: np.ndarray | None = None

    def show(self, frame: Any) -> np.ndarray:
        """RGB [height, width, 3] uint8 of a decoded frame."""
        if any(component.is_alpha for component in frame.format.components):
            rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
            colour, alpha = rgba[..., :3], rgba[..., 3:]
            pixels = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        else:
            pixels = frame.to_ndarray(format="rgb24")
        pixels = _stretched(pixels, self.pixel_shape)
        # frame.side_data makes a cycle of references, in which PyAV keeps whole frames: it is asked for once
        if frame.rotation != self._rotation:
            self._rotation = frame.rotation
            matrices = [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
            self._matrix = np.frombuffer(matrices[0], np.int32)[:9] if matrices else None
        return pixels if self._matrix is None else turned(pixels, self._matrix)


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
