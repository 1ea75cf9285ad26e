from __future__ import annotations

from pathlib import Path

import pytest

from linmu.errors import InputError
from linmu.formats.video_stream import watch_source


@pytest.mark.parametrize(
    "source, kind",
    [
        ("clip.mp4", "file"),
        (Path("/a/b.mkv"), "file"),
        ("C:/clip.mp4", "file"),
        ("/dev/video0", "camera"),
        ("/dev/video12", "camera"),
        ("rtsp://camera/1", "stream"),
        ("RTSPS://camera/1", "stream"),
        ("tcp://127.0.0.1:5000", "stream"),
        ("udp://0.0.0.0:5000", "stream"),
        ("http://camera/video.mjpg", "stream"),
    ],
)
def test_kinds_of_sources(source, kind):
    assert watch_source(source).kind == kind
    assert watch_source(source).live == (kind != "file")


@pytest.mark.parametrize(
    "source",
    ["file:///etc/passwd", "concat://a", "ftp://a/b", "pipe://0", "lavfi://color", "", "a\0b", "tcp://a\0b", 3],
)
def test_other_addresses_are_refused(source):
    with pytest.raises(InputError, match="a stream to watch"):
        watch_source(source)


def test_passwords_are_not_shown():
    assert str(watch_source("rtsp://me:secret@camera/1")) == "rtsp://camera/1"
