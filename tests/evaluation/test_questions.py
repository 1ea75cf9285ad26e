from __future__ import annotations

from collections import Counter

import pytest

from linmu.errors import InputError
from linmu.evaluation.questions import Question, check, choose
from tests.tiny import tiny_image


def many(**counts: int) -> list[Question]:
    return [Question(f"{task}{i}", "?", ("a",), task=task) for task, count in counts.items() for i in range(count)]


def test_a_limit_keeps_the_shares_of_tasks():
    questions = many(a=60, b=30, c=10)
    found = choose(questions, 20, seed=3)
    assert Counter(item.task for item in found) == {"a": 12, "b": 6, "c": 2}
    order = [questions.index(item) for item in found]
    assert order == sorted(set(order))


@pytest.mark.parametrize(
    ("counts", "limit", "wanted"),
    [
        ({"a": 97, "b": 2, "c": 1}, 5, {"a": 3, "b": 1, "c": 1}),
        ({"a": 97, "b": 2, "c": 1}, 2, {"a": 2}),
        ({"a": 1, "b": 1, "c": 8}, 9, {"a": 1, "b": 1, "c": 7}),
        ({"a": 3, "b": 3}, 5, {"a": 3, "b": 2}),
        ({"a": 3}, 7, {"a": 3}),
    ],
)
def test_small_limits(counts, limit, wanted):
    assert Counter(item.task for item in choose(many(**counts), limit, 0)) == wanted


def test_the_seed_decides():
    questions = many(a=40, b=40)
    names = [[item.id for item in choose(questions, 20, seed)] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    # another task in the set leaves the choice within a task alone
    more = choose([*questions, *many(c=40)], 30, 0)
    assert [item.id for item in more if item.task != "c"] == names[0]
    assert choose(questions, None, 0) == questions


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "no questions"),
        ([Question("x", "?", ("a",)), Question("x", "!", ("a",))], "'x' occurs twice"),
        ([Question("x", "?", ())], "'x' has no answer"),
    ],
)
def test_check(questions, message):
    with pytest.raises(InputError, match=message):
        check(questions)


def test_missing_files_are_counted(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    images = (tmp_path / "a.png", tmp_path / "b.png")
    question = Question("x", "?", ("a",), images=images, video=tmp_path / "c.mp4")
    with pytest.raises(InputError, match=r"b\.png is missing \(2 files in all\)"):
        check([question])
    assert list(question.files()) == [*images, tmp_path / "c.mp4"]


def test_embedded_images():
    with pytest.raises(InputError, match="cannot read an embedded image; got 3 bytes"):
        Question("x", "?", ("a",), images=(b"abc",)).pictures()


def test_the_digest_is_of_what_the_model_sees(tmp_path):
    tiny_image(1).save(tmp_path / "a.png")
    tiny_image(2).save(tmp_path / "b.png")
    base = {"id": "x", "prompt": "?", "answers": ("a",), "images": (tmp_path / "a.png",)}
    same = [base, base | {"answers": ("b",)}, base | {"id": "y", "task": "t"}]
    other = [
        base | {"prompt": "!"},
        base | {"images": ()},
        base | {"images": (tmp_path / "b.png",)},
        base | {"images": (b"1",)},
        base | {"images": (b"2",)},
        base | {"video": tmp_path / "b.png"},
        base | {"video": tmp_path / "b.png", "video_fps": 2.0},
    ]
    assert len({Question(**item).digest() for item in same}) == 1
    assert len({Question(**item).digest() for item in [base, *other]}) == len(other) + 1
