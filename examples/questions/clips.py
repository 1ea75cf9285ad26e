"""Scenes of short clips: direction of motion, order of events, counting over time.

Every length works: events are spread over the frames there are, so that longer clips ask the same questions.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from examples.questions.content import COLORS, ORDINALS, SHAPES, split_of
from examples.questions.drawing import SIDE, Item, background, draw_digits, draw_item
from examples.questions.stills import Question, Scene, pick, some

FRAMES = (3, 6)  # least and most frames of a training clip
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOST_EVENTS = 3


def _length(rng: Generator, frames: int | None) -> int:
    return frames if frames is not None else int(rng.integers(FRAMES[0], FRAMES[1] + 1))


def _kinds(rng: Generator, split: str, count: int, about: str) -> list[tuple[str, str]]:
    """`count` different (colour, shape), no colour and no shape twice, of the split."""
    while True:
        kinds = list(zip(some(rng, list(COLORS), count), some(rng, SHAPES, count), strict=True))
        if split_of(about + repr(kinds)) == split:
            return kinds


def motion(rng: Generator, split: str, frames: int | None = None) -> Scene:
    """One shape moves; in half the clips another one stands still."""
    length = _length(rng, frames)
    way = pick(rng, list(DIRECTIONS))
    (color, shape), other = _kinds(rng, split, 2, way)
    dx, dy = DIRECTIONS[way]
    travel, radius = rng.uniform(56, 100), rng.uniform(14, 20)
    middle, across = SIDE / 2 + rng.uniform(-8, 8), rng.uniform(30, SIDE - 30)
    still = _standing(rng, other) if rng.random() < 0.5 else None
    ground = background(rng)
    shown, marks = [], []
    for t in np.linspace(-0.5, 0.5, length):
        picture = ground.copy()
        there = [] if still is None else [draw_item(picture, still, rng)]
        x = middle + t * travel * dx if dx else across
        y = middle + t * travel * dy if dy else across
        there.append(draw_item(picture, Item(color, shape, x, y, radius), rng))
        shown.append(np.asarray(picture))
        marks.append(tuple(there))
    question = Question("direction", f"Which way does the {shape} move?", way)
    return Scene((question,), frames=np.stack(shown), marks=tuple(marks))


def _standing(rng: Generator, kind: tuple[str, str]) -> Item:
    x, y = rng.uniform(25, SIDE - 25, 2)
    return Item(*kind, x, y, 15)


def order(rng: Generator, split: str, frames: int | None = None) -> Scene:
    """Two or three things appear one after another, each alone."""
    length, count = _length(rng, frames), int(rng.integers(2, 4))
    kinds = _kinds(rng, split, count, "order")
    digits = [int(d) for d in some(rng, range(10), count)]
    shapes = [bool(rng.random() < 0.7) for _ in range(count)]
    cuts = np.sort(rng.choice(np.arange(1, length), count - 1, replace=False))
    ground, shown, marks = background(rng), [], []
    for i, run in enumerate(np.split(np.arange(length), cuts)):
        picture = ground.copy()
        if shapes[i]:
            x, y = rng.uniform(40, SIDE - 40, 2)
            there = [draw_item(picture, Item(*kinds[i], x, y, rng.uniform(18, 30)), rng)]
        else:
            there = draw_digits(picture, [digits[i]], rng, split)
        shown += [np.asarray(picture)] * len(run)
        marks += [tuple(there)] * len(run)
    names = [f"{kinds[i][0]} {kinds[i][1]}" if shapes[i] else str(digits[i]) for i in range(count)]
    places = [*ORDINALS[: count - 1], "last"]
    asked = [Question("order", f"What comes {where}?", name) for where, name in zip(places, names, strict=True)]
    return Scene(tuple(some(rng, asked, count)), frames=np.stack(shown), marks=tuple(marks))


def events(rng: Generator, split: str, frames: int | None = None) -> Scene:
    """A shape appears and disappears several times; in half the clips another one stays."""
    length = _length(rng, frames)
    count = int(rng.integers(1, min(MOST_EVENTS, (length + 1) // 2) + 1))
    kinds = _kinds(rng, split, 2, f"events {count}")
    x, y = rng.uniform(35, SIDE - 35, 2)
    flashing = Item(*kinds[0], x, y, radius=rng.uniform(16, 24))
    far_x, far_y = np.clip((np.array([x, y]) + SIDE / 2) % SIDE, 22, SIDE - 22)
    steady = Item(*kinds[1], far_x, far_y, 16) if rng.random() < 0.5 else None
    ground, shown, marks = background(rng), [], []
    for on in _runs(rng, length, count):
        picture = ground.copy()
        there = [] if steady is None else [draw_item(picture, steady, rng)]
        there += [draw_item(picture, flashing, rng)] if on else []
        shown.append(np.asarray(picture))
        marks.append(tuple(there))
    question = Question("events", f"How many times does the {flashing.shape} appear?", str(count))
    return Scene((question,), frames=np.stack(shown), marks=tuple(marks))


def _runs(rng: Generator, length: int, count: int) -> np.ndarray:
    """`count` separate runs of True in `length` frames; a clip may begin or end with one."""
    least = np.array([0, *[1] * (2 * count - 1), 0])  # off, on, off, ..., on, off
    spare = length - least.sum()
    parts = least + rng.multinomial(spare, rng.dirichlet(np.full(len(least), 2.0)))
    return np.repeat(np.arange(len(parts)) % 2 == 1, parts)
