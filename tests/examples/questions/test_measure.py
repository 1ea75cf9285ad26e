"""Demo data sets are made once, and a model's accuracy on them is what its texts deserve."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from examples.questions.generate import TASKS
from examples.questions.measure import accuracy, ask_all, make_sets, table_line
from linmu.formats.data_folder import DataFolder
from tests.folders import student_folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Small sets: 13 training samples, two tests of 12."""
    root = tmp_path_factory.mktemp("sets")
    said: list[str] = []
    return root, make_sets(root, 13, 12, (7, 8), said.append), said


def test_sets_are_made_once(sets):
    root, (train, validation, tests), said = sets
    assert [len(DataFolder.open(folder)) for folder in (train, validation, *tests)] == [13, 240, 12, 12]
    assert len(said) == 4
    before = (train / "data.jsonl").stat().st_mtime_ns
    make_sets(root, 13, 12, (7, 8), said.append)
    assert len(said) == 4 and (train / "data.jsonl").stat().st_mtime_ns == before


def test_accuracy_is_that_of_the_texts(sets, tmp_path):
    """The texts that were kept, compared by hand with the expected answers."""
    _, (_, _, tests), _ = sets
    student = student_folder("smolvlm", tmp_path / "model")
    found = accuracy(ask_all(student, tests, tmp_path / "said", batch_size=5))
    assert list(found) == [*TASKS, "all"]
    right = 0
    for test in tests:
        said = [json.loads(line) for line in (tmp_path / "said" / f"{test.name}.jsonl").read_text().splitlines()]
        texts = {entry["id"]: entry["text"].strip() for entry in said if "text" in entry}
        right += sum(texts[sample.id] == sample.answer for sample in DataFolder.open(test).samples)
    assert found["all"] == pytest.approx(right / 24)
    assert table_line("tiny", found).startswith("tiny ")
