from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest

from linmu.errors import InputError
from linmu.formats.video_stream import live_frames, watch_source
from linmu.runtimes.frame_reader import FrameReader, Pace
from tests.clips import levels, seen, write_clip
from tests.runtimes.streams import tcp_server

QUICK = {"pause_s": 0.05, "patience_s": 5.0}


def reader_of(source, fps=10.0, capacity=64, **pace) -> FrameReader:
    return FrameReader(watch_source(source), fps, lambda pixels: pixels, Pace(capacity, **{**QUICK, **pace}))


def all_of(reader: FrameReader, most: int = 1000) -> list:
    """Every frame until there are `most`, or nothing comes any more."""
    frames = []
    end = time.monotonic() + 60
    while len(frames) < most and not (reader.ended and not reader.waiting) and time.monotonic() < end:
        frame = reader.take(0.1)
        frames += [] if frame is None else [frame]
    return frames


def until(reader: FrameReader, done) -> None:
    """Wait until the reader has done something."""
    end = time.monotonic() + 60
    while not done(reader.counts) and not reader.ended and time.monotonic() < end:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def transport_stream(tmp_path_factory) -> bytes:
    """Ten frames, ten a second, of ten greys."""
    return write_clip(tmp_path_factory.mktemp("ts") / "c.ts", levels(10)).read_bytes()


@pytest.mark.parametrize("fps, expected", [(10, list(range(10))), (5, [0, 2, 4, 6, 8]), (2, [0, 5])])
def test_a_file_is_sampled_and_waits_for_its_reader(fps, expected, tmp_path):
    reader = reader_of(write_clip(tmp_path / "c.mp4", levels(10), lossless=True), fps, capacity=1)
    reader.start()
    frames = all_of(reader)
    assert seen(np.stack([frame.pixels for frame in frames])) == expected
    assert [frame.slot for frame in frames] == list(range(len(expected)))
    counts = reader.counts
    assert (counts.decoded, counts.sampled, counts.dropped, reader.error) == (10, len(expected), 0, None)
    reader.close()


def test_a_file_at_a_speed_drops_the_oldest_frames(tmp_path):
    reader = reader_of(write_clip(tmp_path / "c.mp4", levels(10), lossless=True), capacity=3, speed=1000.0)
    reader.start()
    while not reader.ended:
        time.sleep(0.01)
    frames = all_of(reader)
    assert seen(np.stack([frame.pixels for frame in frames])) == [7, 8, 9]
    assert (reader.counts.sampled, reader.counts.dropped) == (10, 7)


def test_a_stream_that_dies_is_opened_again(transport_stream):
    with tcp_server([transport_stream] * 3) as address:
        reader = reader_of(address)
        reader.start()
        until(reader, lambda counts: counts.decoded == 30)
        reader.close()
        frames = all_of(reader)
    counts = reader.counts
    assert len(frames) == counts.sampled and counts.dropped == 0
    assert counts.decoded == 30 and counts.reconnects >= 2 and reader.error is None
    slots = [frame.slot for frame in frames]
    assert len(slots) > 20 and slots == sorted(set(slots))


def test_a_stream_that_is_silent_is_given_up_and_opened_again(transport_stream):
    with tcp_server([transport_stream, transport_stream], hold=True) as address:
        reader = reader_of(address, patience_s=0.3)
        reader.start()
        until(reader, lambda counts: counts.reconnects == 2)
        reader.close()
    assert 10 < reader.counts.decoded <= 20 and reader.error is None  # the last pictures wait in the decoder


def test_damaged_packets_are_counted_and_skipped(transport_stream):
    """A whole picture's data overwritten: H.264 slices that cannot be decoded."""
    data = bytearray(transport_stream)
    rng = np.random.default_rng(1)
    middle = range(len(data) // 2 // 188 * 188, len(data) * 3 // 4 // 188 * 188, 188)
    for packet in middle:
        data[packet + 30 : packet + 188] = rng.bytes(158)
    with tcp_server([bytes(data), transport_stream]) as address:
        reader = reader_of(address)
        reader.start()
        until(reader, lambda counts: counts.reconnects == 2)
        reader.close()
    assert reader.error is None and 10 < reader.counts.decoded <= 20


def test_formats_without_times_are_timed_by_this_machine(transport_stream, tmp_path):
    """Motion JPEG: FFmpeg would say 25 frames a second, whatever the camera sends."""
    pictures = write_clip(tmp_path / "c.mjpeg", levels(10), codec="mjpeg", pixels="yuvj420p").read_bytes()
    for data, timed in ((pictures, False), (transport_stream, True)):
        with tcp_server([data]) as address:
            frames = [frame for frame in live_frames(watch_source(address), 5.0) if frame is not None]
        assert len(frames) == 10 and all((frame.seconds is not None) == timed for frame in frames)


@pytest.mark.parametrize("data, expected", [(b"", "cannot read"), (b"no video at all\n" * 5000, "cannot read")])
def test_what_never_showed_a_frame_is_an_error(data, expected):
    with tcp_server([data]) as address:
        reader = reader_of(address, patience_s=2.0)
        reader.start()
        assert all_of(reader) == []
    assert isinstance(reader.error, InputError) and expected in str(reader.error)


def test_nobody_listens_and_no_file():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for source in (f"tcp://127.0.0.1:{port}", "/gone/away.mp4", "/dev/video99"):
        reader = reader_of(source)
        reader.start()
        assert all_of(reader) == [] and "cannot read" in str(reader.error)


def test_udp(transport_stream):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    over = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not over.wait(0.02):
                for start in range(0, len(transport_stream), 7 * 188):
                    sender.sendto(transport_stream[start : start + 7 * 188], ("127.0.0.1", port))

    reader, thread = reader_of(f"udp://127.0.0.1:{port}"), threading.Thread(target=send, daemon=True)
    thread.start()
    reader.start()
    frames = all_of(reader, 5)
    reader.close()
    over.set()
    thread.join()
    assert len(frames) == 5 and frames[0].pixels.shape == (48, 64, 3)
