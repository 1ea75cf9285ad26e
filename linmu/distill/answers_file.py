"""The teacher's answers on disk: a line for every answer, with the key of what it depends on.

OUT/training/answers.jsonl grows a batch at a time. Process number n > 0 of several writes answers-n.jsonl; all of them
are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from linmu.errors import InputError
from linmu.files.atomic import disk_full, is_disk_full


@dataclass(frozen=True)
class TeacherAnswer:
    """One line: the key, the sample's id, the text, and whether it ended by itself; unusable: why nobody learns it."""

    key: str
    id: str
    text: str
    ended: bool
    unusable: str | None = None


def answers_path(folder: Path, process: int) -> Path:
    """The file that a process writes."""
    return folder / (f"answers-{process}.jsonl" if process else "answers.jsonl")


def read_answers(folder: Path) -> dict[tuple[str, str], TeacherAnswer]:
    """(key, id) -> the first answer that the files hold; a last line that a kill cut short is left out."""
    known: dict[tuple[str, str], TeacherAnswer] = {}
    for path in sorted(folder.glob("answers*.jsonl")):
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
            try:
                answer = TeacherAnswer(**json.loads(line))
            except (ValueError, TypeError, RecursionError) as error:
                fix = "remove the file: the teacher answers again"
                raise InputError(f"{path}, line {number}: no answer of a teacher", got=error, fix=fix) from error
            known.setdefault((answer.key, answer.id), answer)
    return known


def append(path: Path, answers: Sequence[TeacherAnswer]) -> None:
    """Add lines, on disk when the call returns."""
    try:
        with path.open("ab") as file:
            file.write(b"".join(json.dumps(asdict(answer), ensure_ascii=False).encode() + b"\n" for answer in answers))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(path, error) from error
        raise InputError(f"cannot write {path}", got=error.strerror, fix="choose another place") from error


def drop_torn_line(path: Path) -> None:
    """Take away what a kill left of a last line."""
    if path.is_file():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
