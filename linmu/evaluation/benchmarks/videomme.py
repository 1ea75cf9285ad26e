"""Video-MME: `videomme/test-*.parquet`, `data/*.mp4`, `subtitle/*.srt`; four options a question, by duration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from linmu.errors import InputError
from linmu.evaluation.benchmarks import Options
from linmu.evaluation.benchmarks.files import field, inside, parquet_rows, texts
from linmu.evaluation.questions import Question

PROMPT = (
    "{subtitles}Select the best answer to the following multiple-choice question based on the video. Respond with "
    "only the letter (A, B, C, or D) of the correct option.\n{question}\n{options}\nThe best answer is:"
)
SUBTITLES = "This video's subtitles are listed below:\n{}\n"
VIDEO_FOLDERS = ("data", "videos", "video")  # as the archives unpack, and two names people give
VIDEO_ENDINGS = (".mp4", ".MP4", ".mkv", ".webm")
TIME_LINE = re.compile(r"^\d+:\d\d:\d\d[,.]\d+ --> ")


def looks_like(folder: Path) -> bool:
    """Whether the folder holds videomme/test-*.parquet."""
    return next((folder / "videomme").glob("*-*.parquet"), None) is not None


def read(folder: Path, options: Options) -> list[Question]:
    """The questions of the split "test", by duration (short, medium, long)."""
    pattern = f"{options.split}-*.parquet"
    files = sorted((folder / "videomme").glob(pattern)) or sorted(folder.glob(pattern))
    if not files:
        raise InputError(f"no videomme/{pattern} in {folder}", expected="the layout of Video-MME")
    return [_question(row, folder, options.subtitles) for row in parquet_rows(files)]


def _question(row: dict[str, Any], folder: Path, subtitles: bool) -> Question:
    name = field(row, "question_id", str, "Video-MME")
    place = f"Video-MME question {name}"
    options = texts(row, "options", place)  # each begins with its letter
    video = field(row, "videoID", str, place)
    values = {
        "subtitles": _subtitles(inside(folder / "subtitle", f"{video}.srt")) if subtitles else "",
        "question": field(row, "question", str, place),
        "options": "\n".join(options),
    }
    return Question(
        id=name,
        prompt=PROMPT.format_map(values),
        answers=(field(row, "answer", str, place),),
        rule="letter",
        video=_video(folder, video),
        task=field(row, "duration", str, place),
        choices=options,
        labels=(
            ("domain", field(row, "domain", str, place)),
            ("task type", field(row, "task_type", str, place)),
            ("sub-category", str(row.get("sub_category") or "unknown")),
        ),
    )


def _video(folder: Path, name: str) -> Path:
    """The video's file; the first place it could be in when it is nowhere."""
    places = [inside(folder / sub, name + ending) for sub in VIDEO_FOLDERS for ending in VIDEO_ENDINGS]
    return next((place for place in places if place.is_file()), places[0])


def _subtitles(path: Path) -> str:
    """All spoken lines of an SRT file without their markup, behind the benchmark's heading; "" where there is none."""
    if not path.is_file():  # some videos have no speech
        return ""
    try:
        content = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}", got=error, expected="subtitles in UTF-8") from error
    spoken: list[str] = []
    speaking = False  # an entry: number, times, lines, blank
    for line in content.splitlines():
        text = re.sub(r"<[^>]*>", "", line).strip()
        if TIME_LINE.match(line):
            speaking = True
        elif not line.strip():
            speaking = False
        elif speaking and text:
            spoken.append(text)
    return SUBTITLES.format("\n".join(spoken)) if spoken else ""
