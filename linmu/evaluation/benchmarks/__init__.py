"""Data sets that `linmu eval` reads from a local copy: one literal table, and which of them a folder is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from linmu.errors import InputError
from linmu.evaluation.questions import Question


@dataclass(frozen=True)
class Format:
    """A data set's layout: the module that reads it, tokens an answer may take, its split, whether it has subtitles.

    Modules have `looks_like(folder) -> bool` and `read(folder, Options) -> list[Question]`.
    """

    module: str
    max_new_tokens: int = 32
    split: str | None = None  # None: the layout has no splits
    subtitles: bool = False


FORMATS: dict[str, Format] = {
    "linmu": Format("linmu.evaluation.benchmarks.data"),
    "mmmu": Format("linmu.evaluation.benchmarks.mmmu", max_new_tokens=128, split="validation"),
    "textvqa": Format("linmu.evaluation.benchmarks.textvqa", split="val"),
    "longvideobench": Format("linmu.evaluation.benchmarks.longvideobench", split="val", subtitles=True),
    "videomme": Format("linmu.evaluation.benchmarks.videomme", split="test", subtitles=True),
}


@dataclass(frozen=True)
class Options:
    """What a reader is told: the split, whether subtitles go before the question, whether capitals matter."""

    split: str = ""
    subtitles: bool = False
    ignore_case: bool = False


def detect(folder: Path) -> str:
    """The name of the layout a folder has; raises InputError when it has none."""
    if not folder.is_dir():
        raise InputError(f"no data folder {folder}", expected="a folder with data.jsonl, or a local copy of a data set")
    names = [name for name, entry in FORMATS.items() if _module(entry).looks_like(folder)]
    if len(names) == 1:
        return names[0]
    raise InputError(
        f"cannot tell the format of {folder}",
        got=", ".join(names) or "none of the known layouts",
        expected="one of " + ", ".join(FORMATS),
        fix="say it with --format",
    )


def read_questions(
    folder: Path, name: str, *, split: str | None = None, subtitles: bool = False, ignore_case: bool = False
) -> list[Question]:
    """All questions of a data set, their files unchecked; raises InputError for what the layout lacks."""
    entry = find_format(name)
    if split is not None and entry.split is None:
        raise InputError(f"the format {name} has no splits", got=split, fix="leave out --split")
    if subtitles and not entry.subtitles:
        raise InputError(f"the format {name} has no subtitles", fix="leave out --subtitles")
    if ignore_case and name != "linmu":
        raise InputError(f"the format {name} has scoring rules of its own", fix="leave out --ignore-case")
    reader: Callable[[Path, Options], list[Question]] = _module(entry).read
    return reader(Path(folder), Options(split or entry.split or "", subtitles, ignore_case))


def find_format(name: str) -> Format:
    """The row of a format; raises InputError that names them all."""
    if name not in FORMATS:
        raise InputError("data format", got=repr(name), expected="auto or one of " + ", ".join(FORMATS))
    return FORMATS[name]


def _module(entry: Format) -> Any:
    return import_module(entry.module)
