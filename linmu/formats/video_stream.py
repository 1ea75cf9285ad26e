"""Live video through PyAV: cameras (V4L2), RTSP, and containers over TCP, UDP and HTTP; frames as they come."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from linmu.errors import InputError, MissingComponentError
from linmu.formats.video_file import FAILURES, FORMATS, MAX_FRAME_PIXELS, REFUSALS, Screen, check_size, moving_pictures

# What FFmpeg may use for an address of each kind; playlists (hls, dash) would open further addresses.
PROTOCOLS = {
    "rtsp": "rtsp,rtp,srtp,udp,tcp",
    "rtsps": "rtsps,rtsp,rtp,srtp,udp,tcp,tls",
    "tcp": "tcp",
    "udp": "udp",
    "http": "http,tcp",
    "https": "https,http,tls,tcp",
}
STREAM_FORMATS = f"{FORMATS},rtsp,rtp,mpjpeg,mjpeg,h264,hevc"
CLOCKLESS = {"mpjpeg", "mjpeg", "h264", "hevc"}  # FFmpeg makes up times for them, 25 frames a second
CAMERA = re.compile(r"/dev/video\d+")
CAMERA_FORMAT = "video4linux2"
EXPECTED = "a video file, /dev/videoN, or an address that begins with " + ", ".join(f"{name}://" for name in PROTOCOLS)


@dataclass(frozen=True)
class WatchSource:
    """What is watched: kind "file", "camera" or "stream", and its path or address."""

    kind: str
    address: str

    @property
    def live(self) -> bool:
        """Whether frames come when they come, and may be late."""
        return self.kind != "file"

    def __str__(self) -> str:
        """The address without user name and password."""
        return re.sub(r"(?<=://)[^/@\s]*@", "", self.address)


def watch_source(source: str | os.PathLike[str] | WatchSource) -> WatchSource:
    """A source from a path or an address; InputError for a scheme that linmu does not read."""
    if isinstance(source, WatchSource):
        return source
    if not isinstance(source, str | os.PathLike):
        raise InputError("a stream to watch", got=type(source).__name__, expected=EXPECTED)
    text = os.fsdecode(source)
    scheme, sign, _ = text.partition("://")
    if sign and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        if scheme.lower() not in PROTOCOLS or "\0" in text:
            raise InputError("a stream to watch", got=text[:80], expected=EXPECTED)
        return WatchSource("stream", text)
    if not text or "\0" in text:
        raise InputError("a stream to watch", got=repr(text[:40]), expected=EXPECTED)
    return WatchSource("camera" if CAMERA.fullmatch(text) else "file", text)


@dataclass(frozen=True)
class LiveFrame:
    """A decoded frame of PyAV, its time in seconds by the stream's own clock where it has one, and how it is shown."""

    frame: Any
    seconds: float | None
    screen: Screen


def live_frames(source: WatchSource, timeout_s: float) -> Iterator[LiveFrame | None]:
    """Frames of one connection until it ends; None for a packet that could not be decoded.

    timeout_s: for connecting, and for each packet. Raises InputError when it cannot be opened or breaks;
    MissingComponentError without PyAV.
    """
    with _opened(source, timeout_s) as (av, container):
        stream = moving_pictures(container)
        if stream is None or getattr(stream, "codec_context", None) is None:
            raise InputError(f"no pictures in {source}", expected="a video stream of a codec that FFmpeg knows")
        check_size(stream.width, stream.height, str(source))
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
        screen, timed = Screen(stream), container.format.name not in CLOCKLESS
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                yield None
                continue
            for frame in frames:
                yield LiveFrame(frame, frame.time if timed else None, screen)


@contextmanager
def _opened(source: WatchSource, timeout_s: float) -> Iterator[tuple[Any, Any]]:
    try:
        import av
    except ImportError as error:
        raise MissingComponentError("PyAV (av)", needed_for="watching streams", extra="video") from error
    camera = source.kind == "camera"
    options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    if camera:
        options["format_whitelist"] = f"{CAMERA_FORMAT},v4l2"
    else:
        scheme = source.address.partition("://")[0].lower()
        options |= {"format_whitelist": STREAM_FORMATS, "protocol_whitelist": PROTOCOLS[scheme]}
        options |= {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}
    try:
        with av.open(
            source.address,
            format=CAMERA_FORMAT if camera else None,
            options=options,
            timeout=(timeout_s, timeout_s),
            metadata_errors=REFUSALS["metadata_errors"],
        ) as container:
            yield av, container
    except (av.FFmpegError, *FAILURES) as error:
        reason = str(getattr(error, "strerror", None) or error or type(error).__name__)[:200]
        raise InputError(f"cannot read {source}", got=reason, fix="check the address") from error
