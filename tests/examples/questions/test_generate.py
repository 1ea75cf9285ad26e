"""Demo samples: repeatable, right, and different between the splits. Answers are checked from the pixels."""

from __future__ import annotations

import re

import numpy as np
import pytest

from examples.questions.content import COLORS, split_of
from examples.questions.generate import TASKS, VIDEO_TASKS, lines, main, sample, samples
from examples.questions.stills import MOST_OBJECTS, layout
from linmu.errors import InputError


def pixels(item) -> list[np.ndarray]:
    """All pictures and frames of a sample."""
    frames = [] if item.scene.frames is None else list(item.scene.frames)
    return [np.asarray(picture) for picture in item.scene.images] + frames


def ink(picture: np.ndarray, color: str) -> np.ndarray:
    """Where a picture has a colour of the table (drawn with up to 14 steps of variation) [side, side] bool."""
    return (np.abs(picture.astype(int) - COLORS[color]).max(-1) <= 16) & (picture.min(-1) < 200)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_arguments_give_the_same_sample(task):
    one, two, other = (sample(task, "train", seed, 5) for seed in (3, 3, 4))
    assert one.question == two.question
    assert all(np.array_equal(a, b) for a, b in zip(pixels(one), pixels(two), strict=True))
    assert one.question.task == task
    different = len(pixels(one)) != len(pixels(other)) or any(
        not np.array_equal(a, b) for a, b in zip(pixels(one), pixels(other), strict=True)
    )
    assert different or one.question != other.question


@pytest.mark.parametrize("task", [task for task in TASKS if task != "list"])
def test_marks_stand_on_what_they_name(task):
    """A shape's centre has its colour; digits and letters have ink around theirs."""
    for index in range(8):
        item = sample(task, "train", 4, index)
        assert len(item.scene.marks) == len(pixels(item))
        for picture, marks in zip(pixels(item), item.scene.marks, strict=True):
            for mark in marks[-1:] if task == "direction" else marks:  # what moves may cover what stands still
                x, y = int(mark.x), int(mark.y)
                if mark.color:
                    assert ink(picture, mark.color)[y, x]
                else:
                    around = picture[max(y - 15, 0) : y + 15, max(x - 12, 0) : x + 12]
                    assert around.min() < 150 < np.median(picture)
        if item.scene.marks and task in ("digit", "number", "word"):
            assert "".join(mark.content for mark in item.scene.marks[0]) == item.question.answer


def test_layouts_of_the_two_splits_differ():
    rng = np.random.default_rng(0)
    train = {repr(layout(rng, "train")) for _ in range(1500)}
    test = {repr(layout(rng, "test")) for _ in range(300)}
    assert not train & test
    assert len(train) > 1200
    assert {split_of(key) for key in test} == {"test"}


def test_counts_agree_with_the_pixels():
    """A colour that occurs in the picture is counted at least once, one that does not is counted zero times."""
    for index in range(60):
        item = sample("count", "train", 1, index)
        answer = int(item.question.answer)
        assert 0 <= answer <= MOST_OBJECTS
        if found := re.match(r"How many (\w+) objects", item.question.prompt):
            assert (answer > 0) == (ink(pixels(item)[0], found[1]).sum() > 60)


def test_positions_agree_with_the_pixels():
    """The named object's colour has the outermost pixels of all coloured ones."""
    axis = {"left": (1, min), "right": (1, max), "top": (0, min), "bottom": (0, max)}
    checked = 0
    for index in range(80):
        item = sample("position", "test", 2, index)
        side = item.question.prompt.rstrip("?").split()[-1]
        color = item.question.answer.split()[0]
        dimension, extreme = axis[side]
        picture = pixels(item)[0]
        edges = {c: extreme(where[dimension]) for c in COLORS if len((where := np.nonzero(ink(picture, c)))[0]) > 60}
        sign = 1 if extreme is min else -1
        assert sign * edges[color] <= min(sign * edge for edge in edges.values()) + 1
        checked += len(edges) > 1
    assert checked > 40


@pytest.mark.parametrize("frames", [None, 5, 24])
def test_directions_agree_with_the_pixels(frames):
    sign = {"left": (1, -1), "right": (1, 1), "up": (0, -1), "down": (0, 1)}
    for index in range(12):
        item = sample("direction", "train", 0, index, frames)
        clip = item.scene.frames.astype(int)
        assert frames is None or len(clip) == frames
        moved = np.abs(clip - np.median(clip, 0)).max(-1) > 60 if len(clip) > 3 else None
        if moved is None or not (moved[0].any() and moved[-1].any()):
            continue
        axis, way = sign[item.question.answer]
        first, last = (np.nonzero(moved[i])[axis].mean() for i in (0, -1))
        centre = [np.nonzero(frame)[1 - axis].mean() for frame in (moved[0], moved[-1])]
        assert way * (last - first) > 20
        assert abs(centre[0] - centre[1]) < 25


@pytest.mark.parametrize("frames", [None, 3, 50])
def test_events_agree_with_the_pixels(frames):
    for index in range(20):
        item = sample("events", "train", 0, index, frames)
        clip = item.scene.frames.astype(int)
        differs = np.abs(np.diff(clip, axis=0)).reshape(len(clip) - 1, -1).max(1) > 60
        switches = int(differs.sum())
        answer = int(item.question.answer)
        assert switches in (2 * answer - 2, 2 * answer - 1, 2 * answer)


def test_lines_name_their_media():
    written = list(lines(samples("test", 0, len(TASKS))))
    for line, media in written:
        assert set(line) == {"id", "task", "images", "video", "prompt", "answer"}
        assert set(media) == {*line["images"], *([line["video"]] if line["video"] else [])}
        assert (line["video"] is not None) == (line["task"] in VIDEO_TASKS)
    assert len({line["id"] for line, _ in written}) == len(TASKS)


def test_ten_thousand_different_samples():
    prompts = {(s.question.prompt, s.question.answer) for s in samples("train", 0, 3000, ("list",))}
    words = {s.question.answer for s in samples("train", 0, 400, ("word",))}
    assert len(prompts) > 2900
    assert len(words) > 290  # those of one and two letters come again


def test_bad_arguments(tmp_path, capsys):
    with pytest.raises(InputError):
        sample("digit", "dev", 0, 0)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "out"), "--tasks", "digit,poems"])
    assert "unknown tasks ['poems']" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
