"""Small video files as phones, cutters and screen recorders make them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".ts": "libx264", ".webm": "libvpx", ".avi": "mpeg4"}


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    rate: int | Fraction = 10,
    times: Sequence[int] | None = None,
    turn: tuple[float, bool, bool] | None = None,
    codec: str | None = None,
    pixels: str = "yuv420p",
    shape: Fraction | None = None,
    lossless: bool = False,
) -> Path:
    """Write uint8 RGB frames; returns the path.

    times: milliseconds of each frame; turn: degrees counter-clockwise, then mirrored left-right, top-bottom (the
    display matrix); shape: width of a pixel over its height.
    """
    with av.open(str(path), "w") as container:
        options = {"qp": "0"} if lossless else {}
        stream: Any = container.add_stream(codec or CODECS[path.suffix], rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if shape is not None:
            stream.codec_context.sample_aspect_ratio = shape
        if turn is not None:
            stream.set_display_rotation(*turn)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels_of_frame in enumerate(frames):
            kind = "rgba" if pixels_of_frame.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_of_frame), format=kind)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def levels(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """`count` even frames, frame i of grey 16 + 20 i."""
    return [np.full((*size, 3), 16 + 20 * number, np.uint8) for number in range(count)]


def seen(frames: np.ndarray) -> list[int]:
    """Which of `levels` each frame is."""
    return [round((float(frame.mean()) - 16) / 20) for frame in frames]


def cut(path: Path, first: int, count: int, rate: int = 10) -> Path:
    """Make an MP4's edit list show `count` frames from frame `first` on, as a gallery's cutter does; no frame goes."""
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 12
    _, begins, _ = struct.unpack(">IiI", data[place : place + 12])
    clock = struct.unpack(">I", data[(head := data.index(b"mdhd") + 16) : head + 4])[0]
    movie = struct.unpack(">I", data[(head := data.index(b"mvhd") + 16) : head + 4])[0]
    values = (round(count * movie / rate), begins + round(first * clock / rate), 0x10000)
    data[place : place + 12] = struct.pack(">IiI", *values)
    path.write_bytes(data)
    return path
