"""Demo data: seeded questions by task, as Python objects or as a data folder.

`python -m examples.questions.generate OUT --split test --count 1200 --seed 7` writes a folder that `linmu distill` and
`linmu eval` read. The same arguments give the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from examples.questions import clips, stills
from examples.questions.content import SPLITS, check_split
from examples.questions.stills import Question, Scene

SCENES: dict[str, Callable[[Generator, str], Scene]] = {
    "digit": stills.digit,
    "number": stills.number,
    "reading": stills.reading,
    "objects": stills.objects,
    "pictures": stills.pictures,
    "motion": clips.motion,
    "order": clips.order,
    "events": clips.events,
    "listing": stills.listing,
}
TASKS = {  # task -> the kind of scene it is asked about
    "digit": "digit",
    "number": "number",
    "word": "reading",
    "color": "objects",
    "shape": "objects",
    "count": "objects",
    "position": "objects",
    "images": "pictures",
    "direction": "motion",
    "order": "order",
    "events": "events",
    "list": "listing",
}
VIDEO_TASKS = ("direction", "order", "events")


@dataclass(frozen=True)
class Sample:
    """One question with its pictures or clip."""

    id: str
    question: Question
    scene: Scene


def sample(task: str, split: str, seed: int, index: int, frames: int | None = None) -> Sample:
    """The sample of (task, split, seed, index): the same arguments give the same pixels and words.

    frames: length of a clip, for the video tasks; default 3 to 6.
    """
    check_split(split)
    rng = np.random.default_rng([seed, SPLITS.index(split), list(TASKS).index(task), index])
    maker = SCENES[TASKS[task]]
    extra = {"frames": frames} if frames is not None and task in VIDEO_TASKS else {}
    while True:
        scene = maker(rng, split, **extra)
        fitting = [question for question in scene.questions if question.task == task]
        if fitting:
            return Sample(f"{split}-{seed}-{task}-{index}", fitting[0], scene)


def samples(split: str, seed: int, count: int, tasks: tuple[str, ...] = tuple(TASKS), frames: int | None = None):
    """`count` samples, the tasks in turn."""
    return (sample(tasks[i % len(tasks)], split, seed, i, frames) for i in range(count))


def lines(items: Iterator[Sample]) -> Iterator[tuple[dict, dict]]:
    """Samples as what `linmu.formats.data_folder.write_data_folder` takes: (line, media by relative name)."""
    for item in items:
        media: dict = {f"media/{item.id}-{i}.png": picture for i, picture in enumerate(item.scene.images)}
        line = {"id": item.id, "task": item.question.task, "images": list(media), "video": None}
        if item.scene.frames is not None:
            line["video"] = f"media/{item.id}.mkv"
            media[line["video"]] = item.scene.frames
        yield line | {"prompt": item.question.prompt, "answer": item.question.answer}, media


def main(arguments: list[str] | None = None) -> None:
    """Write a data folder."""
    from linmu.formats.data_folder import write_data_folder

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated")
    parser.add_argument("--frames", type=int, help="frames of a clip (default: 3 to 6)")
    chosen = parser.parse_args(arguments)
    tasks = tuple(chosen.tasks.split(","))
    if unknown := sorted(set(tasks) - set(TASKS)):
        parser.error(f"unknown tasks {unknown}; there are {', '.join(TASKS)}")
    write_data_folder(chosen.out, lines(samples(chosen.split, chosen.seed, chosen.count, tasks, chosen.frames)))
    print(f"{chosen.count} samples written to {chosen.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
