"""Our own data folders: exact match of the whole generated text."""

from __future__ import annotations

from pathlib import Path

from linmu.errors import InputError
from linmu.evaluation.benchmarks import Options
from linmu.evaluation.questions import Question
from linmu.formats.data_folder import DataFolder
from linmu.formats.data_line import DATA_FILE


def looks_like(folder: Path) -> bool:
    """Whether the folder holds data.jsonl."""
    return (folder / DATA_FILE).is_file()


def read(folder: Path, options: Options) -> list[Question]:
    """A question a line; raises InputError for wrong lines and for lines without an answer."""
    data = DataFolder.open(folder)
    if empty := [sample.place for sample in data.samples if not sample.answer.strip()]:
        raise InputError(f"{empty[0]} has no answer to compare with", fix="leave plain text out of a test set")
    labels = parts_of([sample.task or "all" for sample in data.samples])
    return [
        Question(
            id=sample.id,
            prompt=sample.prompt,
            answers=(sample.answer, *sample.answers),
            rule="exact_ignoring_case" if options.ignore_case else "exact",
            images=sample.images,
            video=sample.video,
            video_fps=sample.video_fps,
            task=sample.task or "all",
            labels=label,
        )
        for sample, label in zip(data.samples, labels, strict=True)
    ]


def parts_of(tasks: list[str]) -> list[tuple[tuple[str, str], ...]]:
    """Labels of every sample: the parts of task names like "name/animals", where all names have as many parts.

    A part that is the same everywhere is no label.
    """
    parts = [task.split("/") for task in tasks]
    if len({len(row) for row in parts}) != 1 or len(parts[0]) < 2:
        return [()] * len(tasks)
    varying = [place for place, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    return [tuple((f"part {place + 1} of the task", row[place]) for place in varying) for row in parts]
