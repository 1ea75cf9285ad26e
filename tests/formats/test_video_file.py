from __future__ import annotations

import os
import socket
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from linmu.errors import InputError
from linmu.formats.data_folder import DataFolder
from linmu.formats.video_file import Screen, opened_video, turned
from tests.clips import levels, write_clip

CORNERS = np.zeros((48, 80, 3), np.uint8)
CORNERS[:24, :40], CORNERS[:24, 40:], CORNERS[24:, :40], CORNERS[24:, 40:] = (
    (200, 10, 20),
    (30, 210, 40),
    (50, 60, 220),
    (230, 230, 230),
)


def first_frame(path):
    with opened_video(path) as (container, stream):
        return Screen(stream).show(next(container.decode(stream)))


def refused(path) -> str:
    with pytest.raises(InputError) as caught, opened_video(path) as (container, stream):
        list(container.decode(stream))
    assert "\n" not in str(caught.value)
    return str(caught.value)


MIRRORS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize(
    ("ending", "flips"), [(".mkv", MIRRORS[0]), *((".mp4", flips) for flips in MIRRORS), (".mov", MIRRORS[1])]
)
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_clips_stand_as_their_phone_was_held(degrees, flips, ending, tmp_path):
    path = write_clip(tmp_path / f"a{ending}", [CORNERS] * 3, turn=(degrees, *flips))
    wanted = np.rot90(CORNERS, degrees // 90)
    wanted = wanted[:, ::-1] if flips[0] else wanted
    wanted = wanted[::-1] if flips[1] else wanted
    found = first_frame(path)
    assert found.shape == wanted.shape and np.abs(found.astype(int) - wanted).mean() < 6


def test_what_turns_no_quarter():
    image = np.arange(24).reshape(2, 4, 3)
    one = 1 << 16
    for matrix, wanted in {
        (one, 0, 0, one): image,
        (one, one // 3, -one // 3, one): image,
        (0, one, -one, 0): np.rot90(image, -1),
        (0, 0, 0, 0): image,
        (one, one, one, one): image,
        (one // 9, one, -one, one // 9): np.rot90(image, -1),
    }.items():
        a, b, c, d = matrix
        np.testing.assert_array_equal(turned(image, np.array([a, b, 0, c, d, 0, 5, 5, 1 << 30], np.int32)), wanted)


def test_pixels_of_television_are_no_squares(tmp_path):
    assert first_frame(write_clip(tmp_path / "a.mp4", [CORNERS], shape=Fraction(3, 2))).shape == (48, 120, 3)
    assert first_frame(write_clip(tmp_path / "b.mp4", [CORNERS], shape=Fraction(2, 3))).shape == (72, 80, 3)
    turn = (90, False, False)
    assert first_frame(write_clip(tmp_path / "c.mp4", [CORNERS], shape=Fraction(3, 2), turn=turn)).shape == (120, 48, 3)
    assert first_frame(write_clip(tmp_path / "d.mp4", [CORNERS], shape=Fraction(900, 1))).shape == (48, 80, 3)


def assert_never_read(path):
    """Its time of last access is still the one given, and reading it would have changed that."""
    assert path.stat().st_atime == 1
    path.read_bytes()
    if path.stat().st_atime == 1:
        pytest.skip("this file system keeps no times of access")


@pytest.mark.parametrize(("name", "codec", "layout"), [("a.mov", "png", "rgba"), ("a.mkv", "ffv1", "bgra")])
def test_transparent_clips_lie_on_white(name, codec, layout, tmp_path):
    alpha = np.linspace(0, 255, 80).astype(np.uint8)[None, :, None] * np.ones((48, 1, 1), np.uint8)
    frame = np.concatenate([CORNERS, alpha], 2)
    found = first_frame(write_clip(tmp_path / name, [frame], codec=codec, pixels=layout))
    picture = Image.fromarray(frame)
    wanted = np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB"))
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_a_cover_is_not_the_clip(tmp_path):
    """An animated GIF is a clip; a picture alone is none."""
    frames = [Image.fromarray(frame) for frame in levels(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    with opened_video(tmp_path / "a.gif") as (container, stream):
        assert len(list(container.decode(stream))) == 3
    frames[0].save(tmp_path / "a.png")
    assert "a.png" in refused(tmp_path / "a.png")


PLAYLISTS = {
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{inner}\n#EXT-X-ENDLIST\n",
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{inner}\n#EXT-X-ENDLIST\n",
    "net.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
    "list.mp4": "ffconcat version 1.0\nfile {inner}\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n",
    "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1"><BaseURL>{inner}</BaseURL></Representation></AdaptationSet>'
    "</Period></MPD>",
}


@pytest.mark.parametrize("name", list(PLAYLISTS))
def test_playlists_open_no_file_and_no_socket(name, tmp_path):
    inner = write_clip(tmp_path / "inner.ts", levels(3))
    os.utime(inner, (1, inner.stat().st_mtime))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        path = tmp_path / name
        path.write_text(PLAYLISTS[name].format(inner=inner, port=server.getsockname()[1]))
        assert "cannot read the video" in refused(path)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert_never_read(inner)


@pytest.mark.parametrize("name", ["file:inner.mp4", "subfile,,start,0,end,0,,:inner.mp4", "http:/127.0.0.1/a.mp4"])
def test_names_that_look_like_urls_are_names(name, tmp_path, monkeypatch):
    """In a data folder with a relative path, FFmpeg's own opener takes these for protocols."""
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "inner.mp4", levels(3))
    write_line = '{{"prompt": "x", "answer": "y", "video": "{}"}}'
    (tmp_path / "data.jsonl").write_text(write_line.format(name))
    with pytest.raises(InputError, match="line 1: no file"):
        DataFolder.open(".")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    write_clip(tmp_path / "b.mp4", levels(2)).rename(tmp_path / name)
    assert len(DataFolder.open(".")) == 1
    with opened_video((tmp_path / name).relative_to(tmp_path)) as (container, stream):
        assert len(list(container.decode(stream))) == 2


def test_external_references_of_an_mp4_are_not_followed(tmp_path):
    """A data reference with the path of another file instead of "in this file"."""
    inner = write_clip(tmp_path / "inner.mp4", levels(3))
    data = inner.read_bytes()
    place = data.index(b"url ") - 4
    alias = str(inner).encode()
    entry = struct.pack(">I4sI", 12 + len(alias), b"url ", 0) + alias
    changed = bytearray(data[:place] + entry + data[place + 12 :])
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = data.index(box) - 4
        changed[at : at + 4] = struct.pack(">I", struct.unpack(">I", data[at : at + 4])[0] + len(alias))
    (tmp_path / "outer.mp4").write_bytes(changed)
    os.utime(inner, (1, inner.stat().st_mtime))
    try:
        with opened_video(tmp_path / "outer.mp4") as (container, stream):
            list(container.decode(stream))
    except InputError:
        pass
    assert_never_read(inner)


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    for name in ("pipe.mp4", "zero.mp4", "loop.mp4", "none.mp4", ".", "x" * 5000, "a\0b", "\udce4.mp4"):
        refused(tmp_path / name)


def test_a_frame_size_that_does_not_fit_is_refused(tmp_path):
    """A PNG in a MOV that says it is 60,000 x 60,000."""
    path = write_clip(tmp_path / "a.mov", levels(1), codec="png", pixels="rgb24")
    data = bytearray(path.read_bytes())
    place = data.index(b"IHDR")
    data[place + 4 : place + 12] = struct.pack(">II", 60_000, 60_000)
    data[place + 17 : place + 21] = struct.pack(">I", zlib.crc32(data[place : place + 17]))
    path.write_bytes(data)
    refused(path)


@pytest.mark.parametrize(("ending", "box"), [(".mp4", b"stsz"), (".mov", b"stsz"), (".mp4", b"trun")])
def test_tables_that_ask_for_more_memory_than_the_file_holds(ending, box, tmp_path):
    """40 million samples of equal size are 12 bytes in a file and 1.4 GiB in FFmpeg."""
    path = tmp_path / f"a{ending}"
    with av.open(str(path), "w", options={"movflags": "frag_keyframe"} if box == b"trun" else {}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in levels(7):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with opened_video(path) as (container, stream):
        assert len(list(container.decode(stream))) == 7
    data = bytearray(path.read_bytes())
    place = data.index(box) + 4
    if box == b"stsz":
        data[place + 4 : place + 12] = struct.pack(">II", 1, 40_000_000)
        data[(stts := data.index(b"stts") + 8) : stts + 12] = struct.pack(">III", 1, 40_000_000, 1024)
    else:
        data[place + 4 : place + 8] = struct.pack(">I", 40_000_000)
    path.write_bytes(data)
    assert "claims more frames than it has bytes; got 40000000" in refused(path)
