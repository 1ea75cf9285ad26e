from __future__ import annotations

import json

import pytest

from linmu.errors import InputError
from linmu.evaluation.predictions import Prediction, Predictions, asked
from linmu.evaluation.questions import Question

ONE, TWO = Question("one", "?", ("a",)), Question("two", "!", ("a",))


def said(question: Question, model: str = "m", text: str = "hé\nllo", room: int = 8) -> Prediction:
    return Prediction(model, question.id, asked(question, room), text, 3, True)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "deep" / "said.jsonl"
    first = Predictions(path)
    first.add(said(ONE))
    first.add(said(ONE, "other", "x"))
    second = Predictions(path)
    assert second.get("m", ONE, 8) == said(ONE) and second.get("other", ONE, 8) == said(ONE, "other", "x")
    assert second.get("m", TWO, 8) is None and second.get("none", ONE, 8) is None
    second.add(said(ONE, text="later"))
    assert Predictions(path).get("m", ONE, 8).text == "later"


def test_a_changed_question_is_asked_again():
    kept = Predictions()
    kept.add(said(ONE))
    assert kept.get("m", ONE, 8) == said(ONE)
    assert kept.get("m", ONE, 9) is None
    changed = Question("one", "changed", ("a",))
    assert kept.get("m", changed, 8) is None
    kept.add(said(changed))
    assert kept.get("m", ONE, 8) == said(ONE) and kept.get("m", changed, 8) == said(changed)
    assert kept.get("m", Question("one", "?", ("b",), task="t"), 8) == said(ONE)  # only scored in another way


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_an_unfinished_line_is_dropped(tmp_path, cut):
    path = tmp_path / "said.jsonl"
    kept = Predictions(path)
    kept.add(said(ONE))
    whole = path.read_bytes()
    kept.add(said(TWO))
    path.write_bytes(path.read_bytes()[:-cut])
    again = Predictions(path)
    assert again.get("m", ONE, 8) is not None and again.get("m", TWO, 8) is None
    assert path.read_bytes() == whole
    again.add(said(TWO))
    assert Predictions(path).get("m", TWO, 8) == said(TWO)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "not JSON"),
        (b"", "not JSON"),
        (b'{"prompt": "?"}\n', "holds no predictions"),
        (b'{"format": "linmu-predictions", "format_version": 2}\n', "holds no predictions"),
        (b'{"format": "linmu-predictions", "format_version": 1}\n{"id": "x"}\n', "line 2: no prediction"),
        (b'{"format": "linmu-predictions", "format_version": 1}\n[\n{"id": "x"}\n', "line 2: not JSON"),
    ],
)
def test_other_files_are_refused_and_kept(tmp_path, content, message):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Predictions(path)
    assert path.read_bytes() == content


def test_the_first_line_says_what_it_is(tmp_path):
    Predictions(tmp_path / "x")
    assert json.loads((tmp_path / "x").read_text()) == {"format": "linmu-predictions", "format_version": 1}
