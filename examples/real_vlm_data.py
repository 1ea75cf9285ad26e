"""Data folders of the real vision-language model: rounds of `real_vlm_scenes` as lines that `linmu` reads.

Several lines share the pictures of a round. Beside each folder lies NAME.marks.jsonl, a line a picture: what stands
where, which the projector is aligned with before the language model is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from real_vlm_clipart import load_clipart
from real_vlm_phrases import rephrased
from real_vlm_scenes import Mark, Round, Things, chosen, makers
from rich.console import Console
from rich.progress import track
from stamps_source import load_stamps

from linmu.errors import InputError
from linmu.files.atomic import write_bytes
from linmu.formats.data_folder import write_data_folder

# Share of pictures by kind of round in training; in a test every kind comes equally often.
SHARES = {
    "alone": 5,
    "together": 6,
    "pictures": 1,
    "shapes": 5,
    "spelling": 3,
    "reading": 1,
    "number": 2,
    "handwriting": 1,
    "clip": 1,
}
# Kinds with several tasks come more often in a test, so that tasks weigh alike.
TEST_SHARES = {**dict.fromkeys(SHARES, 1), "alone": 2, "together": 3, "shapes": 4}
MOST_QUESTIONS = 5  # of one picture in training
SPLITS = ("train", "test")


def find_package(folder: Path, name: str) -> Path:
    """The package `name` that was downloaded to `folder`; raises InputError that says how to get it."""
    files = sorted(folder.glob(f"{name}_*.deb"))
    if not files:
        fix = f"in that folder: apt-get download {name}, or the .deb file from packages.debian.org"
        raise InputError(f"no package {name}", got=f"no {name}_*.deb in {folder}", fix=fix)
    return files[-1]


def load_things(packages: Path) -> Things:
    """Stamps and clip art of both packages in a folder."""
    stamps, _ = load_stamps(find_package(packages, "tuxpaint-stamps-default"))
    return Things([*stamps, *load_clipart(find_package(packages, "openclipart-png"))])


def rounds(things: Things, split: str, seed: int, count: int, most: int | None = None) -> Iterator[Round]:
    """`count` rounds of a split, each made of its number alone; in a test with one question each.

    most: questions of a training round, MOST_QUESTIONS where it is None.
    """
    most = 1 if split == "test" else most or MOST_QUESTIONS
    kinds = makers(things)
    shares = SHARES if split == "train" else TEST_SHARES
    names = [name for name, share in shares.items() for _ in range(share)]
    for index in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        made = kinds[names[index % len(names)]](rng, split)
        yield chosen(rng, made, most)


def lines(
    found: Iterator[Round], split: str, seed: int, marks: list[list[Mark]]
) -> Iterator[tuple[dict[str, Any], dict[str, Image.Image]]]:
    """Lines and pictures as `write_data_folder` takes them; what stands on each picture is appended to `marks`."""
    for index, round_ in enumerate(found):
        rng = np.random.default_rng([seed, SPLITS.index(split), index, 1])
        media = {f"media/{index:06d}-{rank}.png": picture for rank, picture in enumerate(round_.pictures)}
        marks.extend(list(items) for items in round_.marks)
        for place, question in enumerate(round_.questions):
            asked = rephrased(rng, question)
            line = {"id": f"{split}-{seed}-{index:06d}-{place}", "task": asked.task, "images": list(media)}
            yield line | {"prompt": asked.prompt, "answer": asked.answer}, {} if place else media


def write_set(things: Things, folder: Path, split: str, seed: int, count: int, most: int | None = None) -> None:
    """Write a data folder of `count` rounds and its marks, unless it exists."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    marks: list[list[Mark]] = []
    found = track(rounds(things, split, seed, count, most), folder.name, count, console=Console(stderr=True))
    entries = list(lines(iter(found), split, seed, marks))
    write_bytes(marks_file(folder), "".join(json.dumps(items) + "\n" for items in marks).encode())
    write_data_folder(folder, entries)


def marks_file(folder: Path) -> Path:
    """Where the marks of a data folder lie."""
    return folder.with_name(f"{folder.name}.marks.jsonl")
