"""MMMU: `SUBJECT/validation-*.parquet`, up to seven images a question, multiple-choice and open questions."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from linmu.errors import InputError
from linmu.evaluation.benchmarks import Options
from linmu.evaluation.benchmarks.files import field, parquet_rows
from linmu.evaluation.questions import Question
from linmu.evaluation.scoring import option_letters

DISCIPLINES: dict[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
DISCIPLINE_OF = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects}
CHOICE_PROMPT = "{question}\n\n{options}\n\nAnswer with the option's letter from the given choices directly."
OPEN_PROMPT = "{question}\n\nAnswer the question using a single word or phrase."
CHOICE = "multiple-choice"


def looks_like(folder: Path) -> bool:
    """Whether a subject's folder holds Parquet files."""
    return any(next((folder / subject).glob("*-*.parquet"), None) is not None for subject in DISCIPLINE_OF)


def read(folder: Path, options: Options) -> list[Question]:
    """The questions of a split ("validation" or "dev"), by subject; raises InputError where answers are withheld."""
    files = sorted(folder.glob(f"*/{options.split}-*.parquet")) or sorted(folder.glob(f"{options.split}-*.parquet"))
    if not files:
        raise InputError(f"no {options.split}-*.parquet in {folder}", expected="the layout SUBJECT/SPLIT-*.parquet")
    return [_question(row) for row in parquet_rows(files)]


def _question(row: dict[str, Any]) -> Question:
    name = field(row, "id", str, "MMMU")
    text = field(row, "question", str, name)
    answer = field(row, "answer", str, name)
    if answer == "?":
        raise InputError(f"{name} has no published answer", fix="use the split validation or dev")
    choice = field(row, "question_type", str, name) == CHOICE
    options = _literal_list(field(row, "options", str, name), name) if choice else ()
    lines = "\n".join(f"({key}) {option}" for key, option in zip(option_letters(len(options)), options, strict=True))
    prompt = (CHOICE_PROMPT if choice else OPEN_PROMPT).format_map({"question": text, "options": lines})
    subject = "_".join(name.split("_")[1:-1])
    return Question(
        id=name,
        prompt=prompt,
        answers=(answer,) if choice else _open_answers(answer, name),
        rule="mmmu_choice" if choice else "mmmu_open",
        images=_images(row, prompt, name),
        task=subject,
        choices=options,
        labels=(
            ("discipline", DISCIPLINE_OF.get(subject, "other")),
            ("type", CHOICE if choice else "open"),
            ("difficulty", str(row.get("topic_difficulty") or "unknown")),
        ),
    )


def _images(row: dict[str, Any], prompt: str, name: str) -> tuple[bytes, ...]:
    """The images that question and options mention, in the order of their numbers."""
    pictures = []
    for number in sorted({int(number) for number in re.findall(r"<image (\d+)>", prompt)}):
        image = field(row, f"image_{number}", dict, name)
        pictures.append(field(image, "bytes", bytes, f"{name}, image {number}"))
    return tuple(pictures)


def _open_answers(answer: str, name: str) -> tuple[str, ...]:
    """The accepted answers: a text, or a list written as Python would."""
    return _literal_list(answer, name) if answer.startswith("[") and answer.endswith("]") else (answer,)


def _literal_list(text: str, name: str) -> tuple[str, ...]:
    """A list of texts in Python's notation, read as data."""
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise InputError(f"{name}: a list", got=text[:60], expected="['...', '...']") from error
    if not isinstance(values, list) or not values:
        raise InputError(f"{name}: a list", got=text[:60], expected="['...', '...']")
    return tuple(str(value) for value in values)
