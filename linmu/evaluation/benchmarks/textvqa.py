"""TextVQA: `TextVQA_0.5.1_val.json` and `train_images/`, ten people's answers a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linmu.errors import InputError
from linmu.evaluation.benchmarks import Options
from linmu.evaluation.benchmarks.files import field, inside, json_rows, texts
from linmu.evaluation.questions import Question

PROMPT = "{question}\nAnswer the question using a single word or phrase."
IMAGES = "train_images"  # of the splits train and val; both have published answers
PEOPLE = 10


def looks_like(folder: Path) -> bool:
    """Whether the folder holds TextVQA_*_val.json."""
    return next(folder.glob("TextVQA_*_val.json"), None) is not None


def read(folder: Path, options: Options) -> list[Question]:
    """The questions of a split ("val" or "train"); raises InputError where answers are withheld."""
    files = [path for path in sorted(folder.glob(f"TextVQA_*_{options.split}.json")) if "OCR" not in path.name]
    if not files:
        raise InputError(f"no TextVQA_*_{options.split}.json in {folder}", expected="TextVQA_0.5.1_val.json")
    return [_question(row, folder) for row in json_rows(files[-1], "data")]


def _question(row: dict[str, Any], folder: Path) -> Question:
    name = str(field(row, "question_id", (int, str), "TextVQA"))
    place = f"TextVQA question {name}"
    if "answers" not in row:
        raise InputError(f"{place} has no published answers", fix="use the split val or train")
    answers = texts(row, "answers", place)
    if len(answers) != PEOPLE:
        raise InputError(f"{place}: 'answers'", got=f"{len(answers)}", expected=f"{PEOPLE} people's answers")
    return Question(
        id=name,
        prompt=PROMPT.format_map({"question": field(row, "question", str, place)}),
        answers=answers,
        rule="vqa",
        images=(inside(folder / IMAGES, field(row, "image_id", str, place) + ".jpg"),),
        task="textvqa",
    )
