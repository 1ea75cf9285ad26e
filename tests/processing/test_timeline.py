"""Which frames of a file are shown, and when: edit lists, uneven rates, headers that lie."""

from __future__ import annotations

import gc
import struct
import tracemalloc

import av
import numpy as np
import pytest

from linmu.errors import InputError
from linmu.processing import media
from linmu.processing.convert import video_settings
from linmu.processing.video import SAMPLERS, read_clip
from tests.clips import cut, levels, seen, write_clip
from tests.processing.support import tiny_pair

BURST = [0, 33, 66, 100, 133, 1000, 2000, 3000, 5000, 9000]


def every(total, rate):
    return np.arange(total)


@pytest.mark.parametrize(("first", "count"), [(0, 10), (0, 1), (3, 4), (9, 1), (5, 5)])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_edit_lists_show_some_of_the_frames(first, count, codec, tmp_path):
    """The header still says ten frames in a second; players show what the list says."""
    path = cut(write_clip(tmp_path / "a.mp4", levels(10), codec=codec), first, count)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 10
    clip = read_clip(path, every)
    assert seen(clip.frames) == list(range(first, first + count))
    assert clip.total == count and clip.total / clip.fps == pytest.approx(count / 10)
    assert clip.timestamps == pytest.approx(np.arange(count) / 10)


@pytest.mark.parametrize(("family", "frames"), [("qwen2_5_vl", 4), ("qwen3_vl", 4), ("smolvlm", 1), ("internvl", 4)])
def test_a_cut_clip_is_sampled_by_what_it_shows(family, frames, tmp_path):
    path = cut(write_clip(tmp_path / "a.mp4", levels(10)), 3, 4)
    settings = video_settings(family, {"num_frames": 4} if family == "internvl" else {})
    clip = read_clip(path, lambda total, rate: SAMPLERS[family](total, rate, settings))
    assert len(clip.frames) == frames and set(seen(clip.frames)) <= {3, 4, 5, 6}


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.ts", "a.avi", "b.avi"])
def test_steady_clips_of_every_container(name, tmp_path):
    path = write_clip(tmp_path / name, levels(11), codec="libx264" if name == "b.avi" else None)  # B-frames in an AVI
    clip = read_clip(path, lambda total, rate: np.arange(1, total, 4))
    assert (clip.total, clip.fps) == (11, 10.0) and seen(clip.frames) == [1, 5, 9]
    assert clip.timestamps == [0.1, 0.5, 0.9]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_times_of_uneven_frames_are_their_own(name, tmp_path):
    path = write_clip(tmp_path / name, levels(10), times=BURST)
    clip = read_clip(path, every)
    assert seen(clip.frames) == list(range(10))
    assert clip.timestamps == pytest.approx(np.array(BURST) / 1000, abs=1e-3)
    assert clip.total / clip.fps == pytest.approx(9.1, abs=0.01)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_uneven_frames_are_sampled_by_the_clock(name, tmp_path):
    """Five of ten frames lie in the first eighth of a second; looking at equal times sees them once."""
    path = write_clip(tmp_path / name, levels(10), times=BURST)
    clip = read_clip(path, lambda total, rate: np.array([0, 3, 6, 9]))  # at 0, 2.73, 5.46 and 8.19 s
    assert seen(clip.frames) == [0, 7, 8, 8]
    assert clip.timestamps == pytest.approx([0, 3.0, 5.46, 8.19], abs=0.01)


def test_the_small_unevenness_of_phones_changes_nothing(tmp_path):
    jitter = np.random.default_rng(0).integers(-9, 10, 30)
    times = [int(place * 100 / 3 + shift) for place, shift in enumerate(jitter) if place or shift >= 0]
    frames = [np.full((48, 64, 3), 8 * place, np.uint8) for place in range(len(times))]
    path = write_clip(tmp_path / "a.mkv", frames, rate=30, times=times)
    clip = read_clip(path, lambda total, rate: np.arange(2, total, 5))
    shown = [round(float(frame.mean()) / 8) for frame in clip.frames]
    assert shown == list(range(2, len(times), 5))
    assert clip.timestamps == pytest.approx([(times[place] - times[0]) / 1000 for place in shown], abs=2e-3)


def test_texts_with_times_say_when_a_frame_was_seen(tmp_path):
    path = write_clip(tmp_path / "a.mp4", levels(6), times=[0, 1000, 2000, 3000, 4000, 61_000])
    _, smol = tiny_pair("smolvlm", tmp_path / "smol")
    text = smol.tokenizer.decode(smol.encode("x", video=path).input_ids.tolist(), skip_special_tokens=False)
    assert [text.count(f"Frame from {time}:") for time in ("00:00", "00:04", "01:01")] == [1, 1, 1]
    _, qwen = tiny_pair("qwen3_vl", tmp_path / "qwen")
    text = qwen.tokenizer.decode(qwen.encode("x", video=path).input_ids.tolist(), skip_special_tokens=False)
    assert "<0.5 seconds>" in text and "<32.5 seconds>" in text  # means of 0 and 1, of 4 and 61


def test_a_header_that_counts_too_many_frames(tmp_path):
    path = write_clip(tmp_path / "a.avi", levels(7))
    data = bytearray(path.read_bytes())
    for tag, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        place = data.index(tag) + offset
        assert struct.unpack("<I", data[place : place + 4]) == (7,)
        data[place : place + 4] = struct.pack("<I", 7000)
    path.write_bytes(data)
    clip = read_clip(path, every)
    assert clip.total == 7 and seen(clip.frames) == list(range(7))


def test_no_frames_are_an_error(tmp_path):
    path = cut(write_clip(tmp_path / "a.mp4", levels(10)), 0, 0)
    with pytest.raises(InputError, match="no frames in the video"):
        read_clip(path, every)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm"])
def test_a_large_clip_takes_what_the_model_sees(family, tmp_path):
    """Twelve frames of full HD are 75 MB; kept is what the graph gets, the same as of frames given as an array."""
    still = np.kron(np.random.default_rng(3).integers(0, 256, (27, 48, 3)), np.ones((40, 40, 1))).astype(np.uint8)
    path = write_clip(tmp_path / "a.mp4", [still] * 12, rate=1)
    _, ours = tiny_pair(family, tmp_path / "model")
    tracemalloc.start()
    try:
        clip, duration = media.take_clip(path, 1.0, ours.settings)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert duration == 12 and len(clip.frames) == 12
    whole = read_clip(path, lambda total, rate: np.array(clip.indices))
    assert peak < clip.frames.nbytes + 4 * still.nbytes < whole.frames.nbytes
    again, _ = media.take_clip(whole.frames, 1.0, ours.settings)
    np.testing.assert_array_equal(clip.frames, again.frames)


def test_decoded_frames_do_not_stay_in_memory(tmp_path):
    """PyAV's frames end up in cycles of references when their side data is asked for; 8K frames take 50 MB each."""
    path = write_clip(tmp_path / "a.mp4", levels(11), turn=(90, False, False))
    gc.collect()
    gc.disable()
    try:
        read_clip(path, every)
        alive = sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 2
