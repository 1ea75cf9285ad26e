"""LongVideoBench: `lvb_val.json`, `videos/`, `subtitles/`; two to five options a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linmu.errors import InputError
from linmu.evaluation.benchmarks import Options
from linmu.evaluation.benchmarks.files import field, inside, json_rows, texts
from linmu.evaluation.questions import Question
from linmu.evaluation.scoring import option_letters

PROMPT = "{subtitles}Question: {question}\n{options}\nAnswer with the option's letter from the given choices directly."


def looks_like(folder: Path) -> bool:
    """Whether the folder holds lvb_val.json."""
    return (folder / "lvb_val.json").is_file()


def read(folder: Path, options: Options) -> list[Question]:
    """The questions of the split "val", by group of duration (seconds, at most); InputError where answers are none."""
    rows = json_rows(folder / f"lvb_{options.split}.json")
    return [_question(row, folder, options.subtitles) for row in rows]


def _question(row: dict[str, Any], folder: Path, subtitles: bool) -> Question:
    name = field(row, "id", str, "LongVideoBench")
    place = f"LongVideoBench question {name}"
    candidates = texts(row, "candidates", place)
    if "correct_choice" not in row:
        raise InputError(f"{place} has no published answer", fix="use the split val")
    letters = option_letters(len(candidates))
    right = field(row, "correct_choice", int, place)
    if not 0 <= right < len(letters):
        raise InputError(f"{place}: 'correct_choice'", got=right, expected=f"0..{len(letters) - 1}")
    lines = "\n".join(f"{key}. {candidate}" for key, candidate in zip(letters, candidates, strict=True))
    spoken = _subtitles(inside(folder / "subtitles", field(row, "subtitle_path", str, place))) if subtitles else ""
    values = {"subtitles": spoken, "question": field(row, "question", str, place), "options": lines}
    return Question(
        id=name,
        prompt=PROMPT.format_map(values),
        answers=(letters[right],),
        rule="letter_or_guess",
        video=inside(folder / "videos", field(row, "video_path", str, place)),
        task=f"{field(row, 'duration_group', int, place)} s",
        choices=candidates,
        labels=(
            ("question category", field(row, "question_category", str, place)),
            ("topic", str(row.get("topic_category") or "unknown")),
            ("level", str(row.get("level") or "unknown")),
        ),
    )


def _subtitles(path: Path) -> str:
    """All lines of a subtitle file ("line" or "text" of each entry), one below the other."""
    texts = [str(row.get("line", row.get("text", ""))).strip() for row in json_rows(path)]
    return "".join(f"{line}\n" for line in texts if line)
