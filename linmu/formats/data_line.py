"""A line of `data.jsonl`: which keys it may have and what they must hold; files are looked at elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from linmu.errors import InputError

DATA_FILE = "data.jsonl"
KEYS = ("id", "task", "images", "video", "video_fps", "prompt", "answer", "answers")


@dataclass(frozen=True)
class Sample:
    """One line of a data folder.

    id: the line's own, or "data.jsonl:17"; images, video: files inside the folder; answer: "" where there is none;
    answers: further texts that are right too; task: for accuracy by task; video_fps: frames a second to take from
    the video (None: as the model's processor does); line: counted from 1; plain_text: text alone whose line says
    `"answer": ""`; ended: False for an answer that was cut off, after which no end token is to be learned.
    """

    id: str
    prompt: str
    answer: str = ""
    images: tuple[Path, ...] = ()
    video: Path | None = None
    task: str | None = None
    answers: tuple[str, ...] = ()
    video_fps: float | None = None
    line: int = 0
    plain_text: bool = False
    ended: bool = True

    @property
    def text_only(self) -> bool:
        """Whether the sample has neither pictures nor a video."""
        return not self.images and self.video is None

    @property
    def unanswered(self) -> bool:
        """Whether an answer is missing: plain text needs none."""
        return not self.answer.strip() and not self.plain_text

    @property
    def place(self) -> str:
        """File and line, and the id where it says something else: what an error about the sample begins with."""
        place = f"{DATA_FILE}:{self.line}"
        return place if self.id == place else f"{place} (id {self.id!r})"


def parse_line(text: str, line: int, folder: Path, need_answers: bool = True) -> Sample:
    """The sample of one JSON line, types and keys checked, files not; raises InputError that names file and line."""
    try:
        return parse(text, line, folder, need_answers)
    except LineError as error:
        raise error.named(folder, line, 0) from error


class LineError(Exception):
    """What is wrong with a line; `named` adds where."""

    def __init__(self, what: str, *, got: object = None, expected: object = None, fix: str | None = None):
        super().__init__(what)
        self.what, self.got, self.expected, self.fix = what, got, expected, fix

    def named(self, folder: Path, line: int, more: int) -> InputError:
        """The error with file and line, and how many `more` lines are wrong."""
        rest = f" ({more} more {'line is' if more == 1 else 'lines are'} wrong)" if more else ""
        what = f"{folder / DATA_FILE}, line {line}: {self.what}{rest}"
        return InputError(what, got=self.got, expected=self.expected, fix=self.fix)


def decoded(raw: bytes) -> str:
    """A line's text; LineError unless it is UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError("not UTF-8", got=error, fix="save the file in UTF-8") from error


def parse(text: str, line: int, folder: Path, need_answers: bool) -> Sample:
    """As `parse_line`, but raises LineError."""
    data = _json_object(text)
    if unknown := sorted(set(data) - set(KEYS)):
        raise LineError("unknown key", got=", ".join(map(shortened, unknown)), expected="some of " + ", ".join(KEYS))
    images = _images(data, folder)
    video = None if data.get("video") is None else file_inside(data["video"], '"video"', folder)
    fps = data.get("video_fps")
    if fps is not None and video is None:
        raise LineError('"video_fps" without "video"', got=shortened(fps))
    if fps is not None and (type(fps) not in (int, float) or not 1e-6 <= fps <= 1e6):
        raise LineError('"video_fps"', got=shortened(fps), expected="frames per second, more than 0")
    answers = data.get("answers", [])
    if not isinstance(answers, list):
        raise LineError('"answers"', got=shortened(answers), expected="a list of texts")
    sample = Sample(
        id=_text(data, "id") if "id" in data else f"{DATA_FILE}:{line}",
        prompt=_prompt(data, pictures=bool(images) or video is not None),
        answer=_text(data, "answer", empty=True) if "answer" in data else "",
        images=images,
        video=video,
        task=None if data.get("task") is None else _text(data, "task"),
        answers=tuple(_text({"answers": item}, "answers") for item in answers),
        video_fps=None if fps is None else float(fps),
        line=line,
        plain_text=data.get("answer") == "" and not images and video is None,
    )
    if need_answers and sample.unanswered:
        raise LineError('no "answer"', expected="a text", fix='only text without pictures may have "answer": ""')
    return sample


def _json_object(text: str) -> dict[str, Any]:
    """A line as a dict; JSON's grey areas (NaN, a key twice) are errors."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"a key twice: {shortened(next(name for name in names if names.count(name) > 1))}")
        return row

    try:
        data = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise LineError("not JSON", got=str(error)[:120], expected="one JSON object a line") from error
    if not isinstance(data, dict):
        raise LineError("not a sample", got=shortened(data), expected="a JSON object")
    return data


def _text(data: dict[str, Any], key: str, empty: bool = False) -> str:
    """A text under `key` that says something and that UTF-8 can hold."""
    value = data.get(key)
    if not isinstance(value, str):
        raise LineError(f'"{key}"', got="nothing" if key not in data else shortened(value), expected="a text")
    if not empty and not value.strip():
        raise LineError(f'"{key}" is empty', expected="a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LineError(f'"{key}"', got=f"half a surrogate pair at character {error.start}") from error
    return value


def _prompt(data: dict[str, Any], pictures: bool) -> str:
    if pictures and not str(data.get("prompt", "")).strip():
        raise LineError(
            'pictures without a "prompt"', expected="a text", fix='ask about them, for example "Describe the picture."'
        )
    return _text(data, "prompt")


def _images(data: dict[str, Any], folder: Path) -> tuple[Path, ...]:
    names = data.get("images", [])
    if not isinstance(names, list):
        raise LineError('"images"', got=shortened(names), expected="a list of file names")
    return tuple(file_inside(name, '"images"', folder) for name in names)


def file_inside(name: Any, key: str, folder: Path) -> Path:
    """The file of a relative name without "..": links are looked at when the file is."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise LineError(key, got=shortened(name), expected="a file name relative to the folder")
    _text({key: name}, key)
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts):
        raise LineError(f"{key} names a file outside the folder", got=shortened(name), expected="a relative name")
    return folder / posix


def shortened(value: Any) -> str:
    """A value as messages show it: at most 60 characters."""
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
