from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from linmu.errors import InputError, MissingComponentError
from linmu.formats.data_folder import HASHED_WHOLE, DataFolder, write_data_folder, write_video
from linmu.formats.data_line import Sample, parse_line
from linmu.processing.settings import SplitSettings, VideoSettings
from linmu.processing.video import SAMPLERS, read_clip
from tests.tiny import tiny_image, tiny_video

GOOD = {"prompt": "What?", "answer": "this"}


def write_lines(folder, lines, files=("a.png",)):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(files):
        (folder / name).parent.mkdir(exist_ok=True)
        tiny_image(number, (20, 30)).save(folder / name)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "data.jsonl").write_text(text, encoding="utf-8")
    return folder


def refused(folder, **options) -> str:
    with pytest.raises(InputError) as caught:
        DataFolder.open(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_key(tmp_path):
    write_video(tmp_path / "film.mov", tiny_video(frames=3, size=(20, 30)))
    full = {
        "id": "seven",
        "task": "colour",
        "images": ["a.png", "sub/b.png"],
        "video": "film.mov",
        "video_fps": 2,
        "prompt": " What? ",
        "answer": "grün ",
        "answers": ["green"],
    }
    lines = [full, "", {**GOOD, "video": None, "images": []}, "  \r", GOOD]
    data = DataFolder.open(write_lines(tmp_path, lines, ("a.png", "sub/b.png")))
    images = (tmp_path / "a.png", tmp_path / "sub" / "b.png")
    first = Sample("seven", " What? ", "grün ", images, tmp_path / "film.mov", "colour", ("green",), 2.0, 1)
    assert data.samples[0] == first and not first.text_only
    assert data.samples[1:] == tuple(Sample(f"data.jsonl:{n}", "What?", "this", line=n) for n in (3, 5))
    assert len(data) == 3 and data.samples[1].text_only
    assert (first.place, data.samples[1].place) == ("data.jsonl:1 (id 'seven')", "data.jsonl:3")


def test_a_byte_order_mark_and_carriage_returns_are_taken(tmp_path):
    (tmp_path / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([json.dumps(GOOD).encode()] * 2) + b"\r\n")
    assert [sample.id for sample in DataFolder.open(tmp_path).samples] == ["data.jsonl:1", "data.jsonl:2"]


WRONG = {
    "not JSON": ["{", "nonsense", '{"prompt": NaN}', '{"prompt": "a", "prompt": "b"}', "[" * 100_000, "1" * 5000],
    "expected a JSON object": ["[]", "1", "null", '"text"'],
    "unknown key": [{**GOOD, "image": "a.png"}, {**GOOD, "Prompt": "x"}],
    'pictures without a "prompt"': [
        {"images": ["a.png"], "answer": "x"},
        {"images": ["a.png"], "prompt": ""},
        {"video": "c.mov", "prompt": " "},
    ],
    '"prompt"': [{"answer": "x"}, {**GOOD, "prompt": 3}, {**GOOD, "prompt": None}, {**GOOD, "prompt": ["x"]}],
    '"prompt" is empty': [{**GOOD, "prompt": ""}, {**GOOD, "prompt": " \n"}],
    "surrogate": ['{"prompt": "\\ud800", "answer": "x"}'],
    '"answer"': [{**GOOD, "answer": 5}, {**GOOD, "answer": None}],
    'no "answer"': [
        {"prompt": "x"},
        {"prompt": "x", "answer": " "},
        {"prompt": "x", "answer": "", "images": ["a.png"]},
    ],
    '"answers"': [{**GOOD, "answers": "x"}, {**GOOD, "answers": [""]}, {**GOOD, "answers": [1]}],
    '"images"': [{**GOOD, "images": images} for images in ("a.png", [1], [""], [None], None, {})],
    '"video"': [{**GOOD, "video": 1}, {**GOOD, "video": ["a.mp4"]}],
    '"video_fps"': [{**GOOD, "video": "a.mp4", "video_fps": x} for x in (0, -1, True, "2", 2e6)]
    + ['{"prompt": "x", "answer": "y", "video": "a.mp4", "video_fps": 1e400}'],
    '"video_fps" without': [{**GOOD, "video_fps": 2}],
    "no file": [{**GOOD, "images": ["none.png"]}, {**GOOD, "images": ["sub"]}, {**GOOD, "video": "none.mp4"}],
    "cannot look at": [{**GOOD, "images": ["x" * 5000]}],
    "outside the folder": [
        {**GOOD, "images": [name]}
        for name in ("/etc/hostname", "../a.png", "sub/../../a.png", "sub/../a.png", "C:\\a.png", "sub\\..\\a.png")
    ],
    "half": [{**GOOD, "id": "\ud83d"}],
    '"id"': [{**GOOD, "id": 3}, {**GOOD, "id": ""}, {**GOOD, "id": None}],
    '"task"': [{**GOOD, "task": 3}, {**GOOD, "task": ""}],
}


@pytest.mark.parametrize(("what", "line"), [(what, line) for what, lines in WRONG.items() for line in lines])
def test_a_wrong_line_is_named(what, line, tmp_path):
    line = line if isinstance(line, str) else json.dumps(line)
    folder = write_lines(tmp_path, [GOOD, "", line, GOOD], ("a.png", "sub/b.png"))
    message = refused(folder)
    assert f"{folder / 'data.jsonl'}, line 3: " in message and what in message and " more line" not in message
    assert len(message) < 600


def test_the_number_of_further_wrong_lines(tmp_path):
    lines = [GOOD, "{", GOOD, {**GOOD, "x": 1}, {**GOOD, "images": ["none.png"]}]
    assert "line 2: not JSON (2 more lines are wrong)" in refused(write_lines(tmp_path, lines))
    assert "line 2: not JSON (1 more line is wrong)" in refused(write_lines(tmp_path, lines[:4]))


def test_ids_are_unique(tmp_path):
    lines = [{**GOOD, "id": "a"}, GOOD, {**GOOD, "id": "a"}]
    assert "line 3: \"id\" 'a' is taken; got the same in line 1" in refused(write_lines(tmp_path, lines))
    assert "line 2" in refused(write_lines(tmp_path, [{**GOOD, "id": "data.jsonl:2"}, GOOD]))


def test_answers_may_be_left_out_when_nobody_needs_them(tmp_path):
    folder = write_lines(tmp_path, [{"prompt": "x", "images": ["a.png"]}, {"prompt": "y", "answer": ""}])
    assert "line 1: no" in refused(folder)
    data = DataFolder.open(folder, need_answers=False)
    assert [sample.answer for sample in data.samples] == ["", ""]
    assert [sample.unanswered for sample in data.samples] == [True, False]
    (folder / "data.jsonl").write_text('{"prompt": "y", "answer": ""}')
    assert DataFolder.open(folder).samples[0].plain_text


def test_not_utf8(tmp_path):
    write_lines(tmp_path, [GOOD])
    (tmp_path / "data.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "\xe4"}\n')
    assert "line 2: not UTF-8" in refused(tmp_path)
    (tmp_path / "data.jsonl").write_text(json.dumps(GOOD), encoding="utf-16")
    assert "line 1: not UTF-8" in refused(tmp_path)


def test_folders_that_are_none(tmp_path):
    assert "not a data folder" in refused(tmp_path / "none")
    assert "no data.jsonl" in refused(tmp_path)
    (tmp_path / "data.jsonl").write_text("\n \n")
    assert "no samples" in refused(tmp_path)
    (tmp_path / "data.jsonl").unlink()
    (tmp_path / "data.jsonl").mkdir()
    assert "cannot read" in refused(tmp_path)


def test_damaged_pictures_and_videos(tmp_path):
    folder = write_lines(tmp_path, [{**GOOD, "images": ["a.png"]}])
    whole = (folder / "a.png").read_bytes()
    for content in (b"", whole[:60], whole[:-40], b"text" * 50, whole[:200] + b"\0\0" + whole[202:]):
        (folder / "a.png").write_bytes(content)
        assert "line 1: cannot read the picture" in refused(folder)
    write_video(tmp_path / "v.mp4", tiny_video(frames=2))
    write_lines(tmp_path, [{**GOOD, "video": "v.mp4"}])
    assert len(DataFolder.open(tmp_path)) == 1
    for content in (b"", (tmp_path / "v.mp4").read_bytes()[:100], b"text" * 50):
        (tmp_path / "v.mp4").write_bytes(content)
        assert "line 1: cannot read the video" in refused(folder)


def test_links_must_stay_inside(tmp_path):
    outside = tmp_path / "outside.png"
    tiny_image().save(outside)
    folder = write_lines(tmp_path / "data", [{**GOOD, "images": ["link.png"]}])
    (folder / "link.png").symlink_to(folder / "a.png")
    assert len(DataFolder.open(folder)) == 1
    (tmp_path / "alias").symlink_to(folder)
    assert len(DataFolder.open(tmp_path / "alias")) == 1
    (folder / "link.png").unlink()
    (folder / "link.png").symlink_to(outside)
    assert "line 1: a link leads out of the folder" in refused(folder)
    (folder / "link.png").unlink()
    (folder / "link.png").symlink_to(folder / "link.png")
    assert "line 1" in refused(folder)
    write_lines(folder, [{**GOOD, "images": ["up/outside.png"]}])
    (folder / "up").symlink_to(tmp_path)
    assert "line 1: a link leads out" in refused(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["id", "task", "images", "video", "video_fps", "prompt", "answer", "answers", "x"])
TEXTS = st.text(st.characters(codec=None), max_size=9)
LINES = st.dictionaries(KEYS, JSON | TEXTS | st.lists(TEXTS, max_size=2), max_size=8)


@given(st.text(max_size=40) | JSON.map(json.dumps) | LINES.map(json.dumps), st.booleans())
def test_any_line_is_a_sample_or_an_error_that_names_it(text, need_answers):
    try:
        sample = parse_line(text, 41, Path("/data"), need_answers)
    except InputError as error:
        assert "data.jsonl, line 41: " in str(error) and "\n" not in str(error)
        str(error).encode()
        return
    data = json.loads(text)
    assert sample.prompt == data["prompt"] and sample.prompt.strip() and sample.answer == data.get("answer", "")
    assert sample.id == data.get("id", "data.jsonl:41") and sample.line == 41
    names = [*data.get("images", []), *([data["video"]] if data.get("video") is not None else [])]
    files = [*sample.images, *([sample.video] if sample.video else [])]
    assert [os.path.normpath(f"/data/{name}") for name in names] == [os.path.normpath(file) for file in files]
    assert all(str(file).startswith("/data") and ".." not in file.parts for file in files)
    assert not need_answers or not sample.unanswered
    assert sample.unanswered == (not sample.answer.strip() and not (data.get("answer") == "" and sample.text_only))


def test_the_fingerprint_follows_lines_and_contents(tmp_path):
    line = {**GOOD, "images": ["a.png", "b.bin.png"]}
    folder = write_lines(tmp_path, [line], ("a.png", "b.bin.png"))
    with (folder / "b.bin.png").open("ab") as stream:
        stream.write(bytes(2 * HASHED_WHOLE))  # behind the picture's end
    first = DataFolder.open(folder).fingerprint
    assert first == DataFolder.open(folder).fingerprint and len(first) == 64
    seen = {first}

    def changed():
        seen.add(DataFolder.open(folder).fingerprint)
        return len(seen)

    (folder / "unused.png").write_bytes(b"")
    assert changed() == 1
    content = bytearray((folder / "a.png").read_bytes())
    (folder / "a.png").write_bytes(content + b"\0")
    assert changed() == 2
    (folder / "a.png").write_bytes(content + b"\1")  # the same size
    assert changed() == 3
    for place, count in ((-HASHED_WHOLE, 3), (-1, 4)):  # of a large file only the ends are read
        with (folder / "b.bin.png").open("r+b") as stream:
            stream.seek(place, 2)
            stream.write(b"\1")
        assert changed() == count
    write_lines(folder, [{**line, "answer": "that"}], ())
    assert changed() == 5


def test_writing(tmp_path):
    picture, frames = tiny_image(3, (31, 23)), tiny_video(1, 5, (36, 28))
    items = [
        ({**GOOD, "images": ["img/p.png"], "task": "é"}, {"img/p.png": picture}),
        ({**GOOD, "video": "v.mov", "images": ["img/p.png"]}, {"v.mov": list(frames)}),
        ({**GOOD, "video": "v.mkv", "images": []}, {"v.mkv": frames[:2]}),
    ]
    for name in ("one", "two"):
        assert write_data_folder(tmp_path / name, iter(items)) == 3
    data = DataFolder.open(tmp_path / "one")
    assert [sample.task for sample in data.samples] == ["é", None, None]
    np.testing.assert_array_equal(np.asarray(Image.open(data.samples[1].images[0])), np.asarray(picture))
    for file in ("data.jsonl", "img/p.png", "v.mov", "v.mkv"):
        hashes = {hashlib.sha256((tmp_path / name / file).read_bytes()).hexdigest() for name in ("one", "two")}
        assert len(hashes) == 1, file
    assert data.fingerprint == DataFolder.open(tmp_path / "two").fingerprint


@pytest.mark.parametrize("ending", [".mov", ".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_videos_are_read_back_as_they_were(count, ending, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (count, 27, 34, 3), np.uint8)
    write_video(tmp_path / f"v{ending}", frames)
    settings = SplitSettings(mean=(0.5,) * 3, std=(0.5,) * 3, resample=1, longest_edge=64, tile=64)
    for family in ("smolvlm", "qwen3_vl"):
        video = VideoSettings(frames=settings, fps=1.0, num_frames=8 if family == "smolvlm" else None)
        clip = read_clip(tmp_path / f"v{ending}", lambda total, rate: SAMPLERS[family](total, rate, video))  # noqa: B023
        np.testing.assert_array_equal(clip.frames, frames)
        assert (clip.fps, clip.total) == (1.0, count)


def test_writing_leaves_nothing_half_done(tmp_path):
    bad = {
        "line 1: unknown key": [({**GOOD, "x": 1}, {})],
        "line 1: no file": [({**GOOD, "images": ["a.png"]}, {})],
        "outside": [(GOOD, {"../a.png": tiny_image()})],
        "twice": [(GOOD, {"a.png": tiny_image()}), (GOOD, {"a.png": tiny_image()})],
        "ending of a video's name": [(GOOD, {"a.webm": list(tiny_video(frames=2))})],
        "frames of a video": [(GOOD, {"a.mov": [np.zeros((4, 4, 3), np.float32)]})],
        "one size": [(GOOD, {"a.mov": [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)]})],
        "got []": [(GOOD, {"a.mov": []})],
        "no samples": [],
    }
    for what, items in bad.items():
        with pytest.raises(InputError) as caught:
            write_data_folder(tmp_path / "out", items)
        assert what in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    write_data_folder(tmp_path / "out", [(GOOD, {})])
    with pytest.raises(InputError, match="exists"):
        write_data_folder(tmp_path / "out", [(GOOD, {})])


def test_without_pyav(tmp_path, monkeypatch):
    write_video(tmp_path / "v.mov", tiny_video(frames=2))
    write_lines(tmp_path, [{**GOOD, "video": "v.mov"}])
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(DataFolder.open(tmp_path)) == 1
    with pytest.raises(MissingComponentError, match=r"linmu\[video\]"):
        write_video(tmp_path / "w.mov", tiny_video(frames=2))
    (tmp_path / "v.mov").write_bytes(b"")
    assert "is empty" in refused(tmp_path)


def test_data_that_is_no_regular_file_of_the_folder(tmp_path):
    folder = write_lines(tmp_path / "data", [GOOD])
    (folder / "data.jsonl").rename(tmp_path / "outside.jsonl")
    os.mkfifo(folder / "data.jsonl")
    assert "a FIFO, socket or device; expected a regular file" in refused(folder)
    for target, said in (
        ("/dev/zero", "a FIFO, socket or device"),
        (tmp_path / "outside.jsonl", "a link that leaves the folder"),
        ("data.jsonl", "cannot read"),
        ("none", "cannot read the data"),
        ("/proc/self/status", "leaves the folder"),
    ):
        (folder / "data.jsonl").unlink()
        (folder / "data.jsonl").symlink_to(target)
        assert said in refused(folder), target
    for path in ("x" * 5000, "a\0b", "\udce4"):
        refused(tmp_path / path)


def test_pictures_and_videos_that_are_no_regular_files(tmp_path):
    folder = write_lines(tmp_path, [{**GOOD, "images": ["a.png"]}])
    (folder / "a.png").unlink()
    os.mkfifo(folder / "a.png")
    assert "line 1: no file" in refused(folder)
    write_lines(folder, [{**GOOD, "video": "v.mp4"}], ())
    os.mkfifo(folder / "v.mp4")
    assert "line 1: no file" in refused(folder)


def test_what_may_not_be_read_at_all_is_said_at_the_line(tmp_path):
    folder = write_lines(tmp_path, [GOOD, {**GOOD, "images": ["a.png"]}])
    (folder / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert "line 2: cannot read the picture" in refused(folder)
    write_lines(folder, [GOOD, {**GOOD, "video": "v.mp4"}], ())
    (folder / "v.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{folder / 'a.png'}\n")
    assert "line 2: cannot read the video" in refused(folder)
