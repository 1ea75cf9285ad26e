"""Readers of published layouts, on small hand-made copies."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from linmu.errors import InputError, MissingComponentError
from linmu.evaluation.benchmarks import FORMATS, detect, read_questions
from linmu.evaluation.benchmarks.data import parts_of
from linmu.evaluation.benchmarks.files import inside, parquet_rows
from linmu.evaluation.questions import check
from linmu.evaluation.scoring import RULES
from tests.distill.samples import family_folder
from tests.evaluation import layouts
from tests.tiny import tiny_image


@pytest.fixture
def copy_of(tmp_path):
    """A function: format -> a copy of its data set."""

    def make(name: str):
        if name == "linmu":
            return family_folder("llama", tmp_path).folder
        maker = getattr(layouts, f"{name}_copy")
        folder = tmp_path / name
        return maker(folder)

    return make


@pytest.mark.parametrize("name", FORMATS)
def test_every_layout_is_recognised_and_complete(copy_of, name):
    folder = copy_of(name)
    assert detect(folder) == name
    questions = read_questions(folder, name)
    check(questions)
    assert len(questions) >= 2 and all(question.rule in RULES for question in questions)
    assert len({tuple(label for label, _ in question.labels) for question in questions}) == 1


def test_mmmu(copy_of):
    first, second, third = read_questions(copy_of("mmmu"), "mmmu")
    assert first.prompt == (
        "Who painted <image 1>?\n\n(A) Klee\n(B) Miró\n(C) Marc\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (first.answers, first.choices, first.task) == (("B",), ("Klee", "Miró", "Marc"), "Art_Theory")
    assert dict(first.labels) == {"discipline": "Art and Design", "type": "multiple-choice", "difficulty": "Easy"}
    assert "(B) it's <image 1>" in second.prompt
    pictures = [np.asarray(image) for image in second.pictures()]  # in the order of their numbers
    assert all(np.array_equal(image, np.asarray(tiny_image(i))) for i, image in enumerate(pictures, 1))
    assert len(pictures) == 3
    assert third.prompt == "How long is x in <image 1>?\n\nAnswer the question using a single word or phrase."
    assert (third.rule, third.answers, third.choices) == ("mmmu_open", ("12", "twelve"), ())
    assert dict(third.labels)["discipline"] == "Science" and dict(third.labels)["type"] == "open"


def test_mmmus_options_are_data_not_code(copy_of):
    folder = copy_of("mmmu")
    for options in ("__import__('os').getcwd()", "['a'", "7"):
        row = layouts.mmmu_row("validation_Math_1", "?", options, "A", "multiple-choice", 0)
        layouts.write_rows(folder / "Math" / "validation-00000-of-00001.parquet", [row])
        with pytest.raises(InputError, match="validation_Math_1: a list"):
            read_questions(folder, "mmmu")


def test_videomme(copy_of):
    folder = copy_of("videomme")
    first, _, last = read_questions(folder, "videomme")
    question = (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\nHow many {goals} in 001-1?\nA. One.\nB. Two.\nC. Three.\n"
        "D. Four.\nThe best answer is:"
    )
    assert first.prompt == question and (first.answers, first.rule, first.task) == (("C",), "letter", "short")
    assert first.video == folder / "data" / "fFjv93ACGo8.mp4" and last.video == folder / "data" / "-Tr_x.mkv"
    assert dict(last.labels) == {
        "domain": "Sports Competition",
        "task type": "Counting Problem",
        "sub-category": "Football",
    }
    spoken = "This video's subtitles are listed below:\nHi guys,\n42\ngoals today\n"
    first, _, silent = read_questions(folder, "videomme", subtitles=True)
    assert first.prompt == spoken + question and silent.prompt == last.prompt


def test_textvqa(copy_of):
    folder = copy_of("textvqa")
    first, second = read_questions(folder, "textvqa")
    assert first.prompt == "what brand is it?\nAnswer the question using a single word or phrase."
    assert "what TIME is it?" in second.prompt and (first.id, first.rule) == ("34602", "vqa")
    assert first.images == (folder / "train_images" / "003a8ae2ef43b901.jpg",) and len(first.answers) == 10
    # 6 of 10: everybody's rest has at least 3; 3 of 10: (3 * 2/3 + 7 * 1) / 10
    assert RULES["vqa"]("Nokia.", first).score == 1
    assert RULES["vqa"]("toshiba", first).score == pytest.approx(0.9)


def test_longvideobench(copy_of):
    folder = copy_of("longvideobench")
    first, second, third = read_questions(folder, "longvideobench")
    asked = (
        "Question: What happens in a_b_0?\nA. He sits\nB. He stands\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert first.prompt == asked and (first.answers, first.task) == (("B",), "600 s")
    assert first.video == folder / "videos" / "a_b.mp4" and dict(third.labels)["question category"] == "TOS"
    assert (second.answers, third.answers, third.task) == (("A",), ("E",), "15 s")
    first, _, third = read_questions(folder, "longvideobench", subtitles=True)
    assert first.prompt == f"First words\nmore\n{asked}" and third.prompt.startswith("Spoken\nQuestion: ")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("mmmu", "test", "test_Math_1 has no published answer"),
        ("mmmu", "dev", r"no dev-\*.parquet"),
        ("textvqa", "test", "34602 has no published answers"),
        ("longvideobench", "test_wo_gt", "e_0 has no published answer"),
        ("longvideobench", "train", "no .*lvb_train.json"),
        ("linmu", "val", "has no splits"),
    ],
)
def test_splits_without_answers_are_refused(copy_of, name, split, message):
    with pytest.raises(InputError, match=message):
        read_questions(copy_of(name), name, split=split)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct_choice": 2}, "a_b_0: 'correct_choice'; got 2; expected 0..1"),
        ({"correct_choice": True}, "'correct_choice'; got True; expected int"),
        ({"candidates": "ab"}, "'candidates'; got 'ab'; expected list"),
        ({"candidates": ["a", 1]}, "expected a list of texts"),
        ({"question": None}, "'question'; got None; expected str"),
        ({"video_path": "../secret.mp4"}, "outside its folder"),
        ({"video_path": "/etc/passwd"}, "outside its folder"),
    ],
)
def test_wrong_rows_are_named(copy_of, change, message):
    folder = copy_of("longvideobench")
    rows = json.loads((folder / "lvb_val.json").read_text())
    (folder / "lvb_val.json").write_text(json.dumps([rows[0] | change, *rows[1:]]))
    with pytest.raises(InputError, match=message):
        read_questions(folder, "longvideobench")


def test_missing_videos_are_counted(copy_of):
    folder = copy_of("videomme")
    (folder / "data" / "-Tr_x.mkv").unlink()
    with pytest.raises(InputError, match=r"data/-Tr_x\.mp4 is missing \(1 file in all\)"):
        check(read_questions(folder, "videomme"))


@pytest.mark.parametrize(
    ("content", "message"), [("[", "not valid JSON"), ("{}", "a list of objects"), ("[1]", "list")]
)
def test_damaged_json(copy_of, content, message):
    folder = copy_of("longvideobench")
    (folder / "lvb_val.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_questions(folder, "longvideobench")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subtitles": True}, "no subtitles"),
        ({"ignore_case": True}, "scoring rules of its own"),
        ({"split": "nope"}, "TextVQA_.*_nope"),
    ],
)
def test_options_a_format_has_not(copy_of, options, message):
    with pytest.raises(InputError, match=message):
        read_questions(copy_of("textvqa"), "textvqa", **options)


def test_folders_of_no_format(tmp_path, copy_of):
    with pytest.raises(InputError, match="no data folder"):
        detect(tmp_path / "none")
    with pytest.raises(InputError, match="cannot tell the format.*none of the known.*--format"):
        detect(tmp_path)
    folder = copy_of("textvqa")
    (folder / "lvb_val.json").write_text("[]")
    with pytest.raises(InputError, match="got textvqa, longvideobench"):
        detect(folder)
    with pytest.raises(InputError, match="got 'docvqa'; expected auto or one of linmu"):
        read_questions(folder, "docvqa")


def test_a_data_folder_needs_answers(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "Once upon a time", "answer": ""}\n')
    with pytest.raises(InputError, match="data.jsonl:1 has no answer to compare with"):
        read_questions(tmp_path, "linmu")
    line = {"id": "x", "prompt": "?", "answer": "A", "answers": ["b"], "task": "t"}
    (tmp_path / "data.jsonl").write_text(json.dumps(line))
    (found,) = read_questions(tmp_path, "linmu", ignore_case=True)
    assert (found.id, found.answers, found.task, found.rule) == ("x", ("A", "b"), "t", "exact_ignoring_case")


def test_without_pyarrow_the_missing_piece_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingComponentError, match="pyarrow is needed for reading Parquet files"):
        parquet_rows([tmp_path / "x.parquet"])


def test_damaged_parquet(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match="cannot read .*x.parquet"):
        parquet_rows([tmp_path / "x.parquet"])


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../../b", "..\\a", "C:\\a", "a\0b"])
def test_names_stay_inside(tmp_path, name):
    with pytest.raises(InputError, match="outside its folder"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/b c.mp4") == tmp_path / "a" / "b c.mp4"


@pytest.mark.parametrize(
    ("tasks", "labels"),
    [
        (["a", "b"], [(), ()]),
        (["a/x", "b"], [(), ()]),
        (
            ["s/a/x", "s/b/x", "s/a/y"],
            [
                (("part 2 of the task", "a"), ("part 3 of the task", "x")),
                (("part 2 of the task", "b"), ("part 3 of the task", "x")),
                (("part 2 of the task", "a"), ("part 3 of the task", "y")),
            ],
        ),
        (["s/a", "s/a"], [(), ()]),
    ],
)
def test_parts_of_task_names_are_labels(tasks, labels):
    assert parts_of(tasks) == labels
