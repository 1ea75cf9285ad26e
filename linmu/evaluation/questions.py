"""What a model is asked, whatever data set it comes from; choosing a seeded sample that keeps the shares of tasks."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from linmu.errors import InputError
from linmu.formats.picture_file import opened_picture
from linmu.processing.seen import as_seen

Picture = Path | bytes  # a file, or an encoded image that lay inside another file


@dataclass(frozen=True)
class Question:
    """One question with its right answers.

    rule: a name in linmu.evaluation.scoring.RULES; answers: accepted texts, the right letter, or all people's answers,
    as the rule wants them; choices: texts of the options A, B, ...; task: what accuracy is reported by; labels:
    further (name, value) pairs to report by; video_fps: frames a second to take (None: the model's own rule).
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    rule: str = "exact"
    images: tuple[Picture, ...] = ()
    video: Path | None = None
    video_fps: float | None = None
    task: str = "all"
    choices: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def files(self) -> Iterator[Path]:
        """The files it needs."""
        yield from (image for image in self.images if isinstance(image, Path))
        if self.video is not None:
            yield self.video

    def pictures(self) -> list[Path | Image.Image]:
        """Its images as the processor takes them; raises InputError when an embedded one cannot be read."""
        return [image if isinstance(image, Path) else _decoded(image) for image in self.images]

    def digest(self) -> str:
        """Hexadecimal sha256 of what the model sees: prompt, media (files by name and size) and frame rate."""
        media = [
            [file.name, file.stat().st_size] if isinstance(file, Path) else hashlib.sha256(file).hexdigest()
            for file in (*self.images, *([self.video] if self.video is not None else []))
        ]
        return hashlib.sha256(json.dumps([self.prompt, media, self.video_fps]).encode()).hexdigest()


def _decoded(data: bytes) -> Image.Image:
    with opened_picture(data, "an embedded image") as image:
        return as_seen(image)


def check(questions: Sequence[Question]) -> None:
    """Raise InputError when there are none, an id occurs twice, an answer or a file is missing."""
    if not questions:
        raise InputError("the data set has no questions")
    ids: set[str] = set()
    for question in questions:
        if question.id in ids:
            raise InputError(f"question id {question.id!r} occurs twice", expected="every id once")
        ids.add(question.id)
        if not question.answers:
            raise InputError(f"question {question.id!r} has no answer", fix="give a split with published answers")
    missing = sorted({str(file) for question in questions for file in question.files() if not _exists(file)})
    if missing:
        raise InputError(
            f"{missing[0]} is missing ({len(missing)} file{'s' if len(missing) > 1 else ''} in all)",
            expected="the data set's media, unpacked",
            fix="unpack its archives, or copy the files",
        )


def _exists(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that is too long
        return False


def choose(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """`limit` questions in their order, drawn with a seed, every task with its share; all of them without a limit.

    Where the limit allows it every task keeps at least one question.
    """
    if limit is None or limit >= len(questions):
        return list(questions)
    tasks: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        tasks.setdefault(question.task, []).append(place)
    names = sorted(tasks)
    share = {name: limit * len(tasks[name]) / len(questions) for name in names}
    counts = {name: 1 if limit >= len(names) else 0 for name in names}
    for _ in range(limit - sum(counts.values())):
        open_names = [name for name in names if counts[name] < len(tasks[name])]
        counts[max(open_names, key=lambda name: share[name] - counts[name])] += 1
    chosen = [place for name in names for place in random.Random(f"{seed} {name}").sample(tasks[name], counts[name])]
    return [questions[place] for place in sorted(chosen)]
