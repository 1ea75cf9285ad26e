from __future__ import annotations

import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from transformers.video_utils import read_video_pyav

from linmu.errors import InputError, MissingComponentError
from linmu.processing import expand, vision
from linmu.processing.convert import video_settings
from linmu.processing.settings import GridSettings, SplitSettings, VideoSettings
from linmu.processing.video import (
    Clip,
    checked_rate,
    read_clip,
    sample_internvl,
    sample_qwen2_5,
    sample_qwen3,
    sample_smolvlm,
)
from linmu.processing.vision import video_frame_size
from tests.processing.support import pixels_of, tiny_pair
from tests.tiny import tiny_video

GRID = GridSettings(
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    resample=3,
    patch_size=14,
    temporal_patch_size=2,
    merge_size=2,
    min_pixels=3136,
    max_pixels=50_000,
)
SPLIT = SplitSettings(mean=(0.5,) * 3, std=(0.5,) * 3, resample=1, longest_edge=128, tile=64, split=False)


@pytest.fixture
def movie(tmp_path):
    """A 61-frame film at 10 frames a second; the grey level of a frame tells its index."""
    import av

    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = Fraction(1, 10)
        for index in range(61):
            pixels = np.full((48, 64, 3), 4 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def first(total, rate):
    return np.array([0])


@pytest.mark.parametrize("total", [2, 3, 7, 30, 61, 999])
@pytest.mark.parametrize("rate", [10.0, 23.976, 30.0])
def test_sampling_rules(total, rate):
    qwen = VideoSettings(frames=GRID, fps=2.0, min_frames=4, max_frames=16)
    count = min(max(total / rate * 2, 4), min(16, total) // 2 * 2, total)
    count = int(count // 2 * 2)
    assert sample_qwen2_5(total, rate, qwen).tolist() == torch.arange(0, total, total / count).int().tolist()
    count = min(max(int(total / rate * 2), 4), 16, total)
    assert sample_qwen3(total, rate, qwen).tolist() == np.linspace(0, total - 1, count).round().astype(int).tolist()
    parts = min(5, total)
    middle = torch.arange(total / parts / 2, total, total / parts).int().tolist()
    assert sample_internvl(total, rate, VideoSettings(frames=SPLIT, num_frames=5)).tolist() == middle
    smol = sample_smolvlm(total, rate, VideoSettings(frames=SPLIT, fps=1.0, num_frames=8))
    assert len(smol) == min(8, max(1, round(total / rate)))
    if total / rate - 2 > 8:
        assert smol[0] == int(rate) and smol[-1] == int(total - rate)


def test_qwen_takes_a_single_frame():
    assert sample_qwen2_5(1, 24.0, VideoSettings(frames=GRID)).tolist() == [0]


def test_read_clip_like_pyav_in_transformers(movie):
    def every_seventh(total, rate):
        return np.arange(3, total, 7)

    clip = read_clip(movie, every_seventh)
    frames, meta = read_video_pyav(str(movie), lambda metadata: np.arange(3, metadata.total_num_frames, 7))
    np.testing.assert_array_equal(clip.frames, frames)
    assert (clip.total, clip.fps) == (meta.total_num_frames, meta.fps) == (61, 10.0)
    levels = clip.frames.mean((1, 2, 3)) / 4
    np.testing.assert_allclose(levels, clip.indices, atol=1)
    assert clip.timestamps[1] == 1.0


def test_bad_videos(tmp_path, movie):
    data = movie.read_bytes()
    for name, content in {"empty.mp4": b"", "half.mp4": data[: len(data) // 3], "text.mp4": b"hello" * 99}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name) as caught:
            read_clip(tmp_path / name, first)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot read the video"):
        read_clip(tmp_path / "none.mp4", first)
    for rate in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError):
            checked_rate(rate)


def test_without_pyav(movie, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingComponentError, match=r"linmu\[video\]"):
        read_clip(movie, first)


def qwen_video_config(theirs):
    size = dict(theirs.image_processor.size)
    means = {"image_mean": list(theirs.image_processor.image_mean), "image_std": list(theirs.image_processor.image_std)}
    return {"patch_size": theirs.image_processor.patch_size, "size": size, **means}


@pytest.mark.parametrize("frames", [6, 5])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_videos(family, frames, tmp_path, movie):
    theirs, _ = tiny_pair(family, tmp_path / "first")
    config = qwen_video_config(theirs)
    if family == "qwen3_vl":  # whose limits count all frames: keep the same size per frame
        config["size"] = {key: value * frames for key, value in config["size"].items()}
    _, ours = tiny_pair(family, tmp_path / "second", config)
    video = tiny_video(frames=frames)
    inputs = ours.encode("what?", video=video, video_fps=2.5)
    metadata = [{"fps": 2.5, "total_num_frames": frames, "frames_indices": list(range(frames))}]
    want = theirs(videos=[video], text=[inputs.text], video_metadata=metadata, return_tensors="np")
    np.testing.assert_array_equal(inputs.input_ids, want["input_ids"][0])
    np.testing.assert_allclose(pixels_of(inputs), want["pixel_values_videos"], atol=1e-6)
    grids = want["video_grid_thw"][0]
    assert [len(inputs.vision_calls), *(2 * n for n in inputs.media[0].tiles[0][1:])] == grids.tolist()
    assert inputs.media[0].kind == "video" and inputs.media[0].tiles[0][0] == grids[0]
    assert all(call["grid"].tolist() == [1, *grids[1:]] for call in inputs.vision_calls)
    assert inputs.media[0].seconds_per_grid == pytest.approx(2 / 2.5)
    if family == "qwen3_vl":
        assert "<0.2 seconds>" in ours.tokenizer.decode(inputs.input_ids.tolist())
    film = ours.encode("what?", video=movie)
    assert len(film.vision_calls) == 6 and film.media[0].seconds_per_grid == pytest.approx(2 * 6.1 / 12)


def test_qwen_size_limits():
    size = video_frame_size(6, 140, 100, VideoSettings(frames=GRID))
    assert size == (140, 112)
    capped = VideoSettings(frames=GRID, cap_pixels_per_frame=True, max_video_tokens=40)
    assert video_frame_size(6, 140, 100, capped) == (112, 56)  # 40 * 784 * 0.9 * 2 / 6 = 9408 pixels a frame
    volume = GridSettings(**{**vars(GRID), "volume": True})
    assert video_frame_size(6, 140, 100, VideoSettings(frames=volume)) == (84, 56)  # 50,000 pixels in six frames
    assert video_frame_size(2, 20, 30, VideoSettings(frames=volume)) == (28, 56)
    share = VideoSettings(frames=volume, cap_pixels_per_frame=True, max_video_tokens=4)
    assert video_frame_size(6, 140, 100, share) == (56, 28)  # 1.05 * 3136 pixels a frame at least


def test_internvl_video(tmp_path):
    theirs, ours = tiny_pair("internvl", tmp_path, {"size": {"height": 84, "width": 84}})
    image = theirs.image_processor
    video = tiny_video(frames=3)
    inputs = ours.encode("what?", video=video)
    tile = "<img>" + "<IMG_CONTEXT>" * 9 + "</img>"
    assert inputs.text == "<|im_start|>user\n<video>\nwhat?<|im_end|>\n<|im_start|>assistant\n"
    frames = f"Frame1: {tile}\nFrame2: {tile}\nFrame3: {tile}"
    assert frames == theirs.replace_video_token({"pixel_values_videos": np.zeros((1, 3, 3, 84, 84))}, 0)
    expanded = inputs.text.replace("<video>", frames)
    assert inputs.input_ids.tolist() == theirs.tokenizer(expanded)["input_ids"]
    want = image(list(video), crop_to_patches=False, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixels_of(inputs), want, atol=1e-6)
    assert [grid.tiles for grid in inputs.media] == [((3, 3, 3),)] and len(inputs.vision_calls) == 1


def test_smolvlm_video(tmp_path, movie):
    sampling = {"video_sampling": {"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 128}}}
    theirs, ours = tiny_pair("smolvlm", tmp_path, {"max_image_size": {"longest_edge": 64}, **sampling})
    inputs = ours.encode("what?", video=movie)
    assert inputs.text == "<|im_start|>User: <video>what?<end_of_utterance>\nAssistant:"
    tile = "<fake_token_around_image><global-img>" + "<image>" * 16 + "<fake_token_around_image>"
    times = ["00:01", "00:02", "00:03", "00:05"]  # frames 10, 23, 37, 51: a second is left out at either end
    body = "".join(f"\nFrame from {time}:{tile}" for time in times)
    intro = "You are provided the following series of four frames from a 0:00:06 [H:MM:SS] video.\n"
    expanded = inputs.text.replace("<video>", f"{intro}{body}\n\n")
    assert inputs.input_ids.tolist() == theirs.tokenizer(expanded)["input_ids"]
    frames = [frame for frame in read_clip(movie, lambda total, rate: np.array([10, 23, 37, 51])).frames]
    want = theirs.image_processor([frames], do_image_splitting=False, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(pixels_of(inputs), want, atol=1e-6)
    assert inputs.media[0].tiles == ((4, 4, 4),)


def test_image_and_video_keep_the_order_of_the_prompt(tmp_path):
    _, ours = tiny_pair("internvl", tmp_path, {"size": {"height": 84, "width": 84}})
    video = tiny_video(frames=2)
    picture = np.full((84, 84, 3), 200, np.uint8)
    from PIL import Image

    parts = [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "?"}]
    inputs = ours.encode([{"role": "user", "content": parts}], [Image.fromarray(picture)], video)
    assert [grid.kind for grid in inputs.media] == ["video", "image"]
    assert np.ptp(pixels_of(inputs)[2, 0]) == 0 < np.ptp(pixels_of(inputs)[0, 0])


def test_families_without_video(tmp_path):
    for family in ("llava", "idefics3", "llama"):
        _, ours = tiny_pair(family, tmp_path / family)
        with pytest.raises(InputError, match="takes no video"):
            ours.encode("x", video=tiny_video(frames=2))


def test_bad_arrays(tmp_path):
    _, ours = tiny_pair("qwen2_5_vl", tmp_path)
    for video in (tiny_video()[0], tiny_video().astype(np.float32), tiny_video()[:0], tiny_video()[..., :1]):
        with pytest.raises(InputError, match="uint8"):
            ours.encode("x", video=video)
    with pytest.raises(InputError, match="per second"):
        ours.encode("x", video=tiny_video(), video_fps=-1.0)


def test_numbers_in_words():
    words = {
        0: "zero",
        4: "four",
        13: "thirteen",
        20: "twenty",
        64: "sixty-four",
        100: "one hundred",
        105: "one hundred and five",
        342: "three hundred and forty-two",
        1000: "one thousand",
        1001: "one thousand and one",
        1234: "one thousand, two hundred and thirty-four",
        20_300: "twenty thousand, three hundred",
    }
    assert {number: expand.number_words(number) for number in words} == words


def test_qwen3_times_are_means_of_a_patch(tmp_path):
    _, ours = tiny_pair("qwen3_vl", tmp_path)
    clip = Clip(np.zeros((3, 1, 1, 3), np.uint8), (0, 12, 30), 24.0, 31)
    text = expand.grid_clip("qwen3_vl", ours.settings.tokens, 2).whole(expand.grid_seconds(clip.timestamps, 2))
    frame = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    assert text == f"<0.2 seconds>{frame}<1.2 seconds>{frame}"


def test_a_long_video_is_not_held_as_floats(monkeypatch):
    """Each grid frame's pixels are made when they are asked for, the same ones every time."""
    made = []
    normalize = vision.normalize
    monkeypatch.setattr(vision, "normalize", lambda *arguments: made.append(1) or normalize(*arguments))
    frames = np.stack([np.full((28, 56, 3), level, np.uint8) for level in range(7)])
    patches = vision.VideoPatches(frames, video_settings("qwen2_5_vl", {}).frames)
    assert not made and len(patches) == 4
    last = patches[3]
    assert len(made) == 1 and np.array_equal(last, patches[-1])
    assert last.shape == (patches.grid[1] * patches.grid[2], 3 * 2 * 14 * 14) and patches.grid == (4, 2, 4)
    by_step = last.reshape(len(last), 3, 2, -1)
    assert np.array_equal(by_step[:, :, 0], by_step[:, :, 1])  # frame 7 does not exist: frame 6 is repeated
    with pytest.raises(IndexError):
        patches[4]
