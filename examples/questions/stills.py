"""Scenes of still pictures and of text alone, each with all the questions that can be asked about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image

from examples.questions.content import COLORS, NOUNS, ORDINALS, SHAPES, split_of, word
from examples.questions.drawing import SIDE, Item, Mark, background, draw_digits, draw_item, draw_word

CELLS = 3  # objects stand in a grid of CELLS x CELLS
MOST_OBJECTS = 6
# words, axis of the grid (0 rows, 1 columns), sign that makes the outermost the least
SIDES = (("on the left", 1, 1), ("on the right", 1, -1), ("at the top", 0, 1), ("at the bottom", 0, -1))


@dataclass(frozen=True)
class Question:
    """A question about a scene and its one right answer."""

    task: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Scene:
    """Pictures or the frames of a clip [frames, height, width, 3] uint8 at one frame a second, and questions.

    marks: what stands where, for each picture or frame.
    """

    questions: tuple[Question, ...]
    images: tuple[Image.Image, ...] = ()
    frames: np.ndarray | None = None
    marks: tuple[tuple[Mark, ...], ...] = ()


def pick(rng: Generator, choices):
    """One of a sequence."""
    return choices[int(rng.integers(len(choices)))]


def some(rng: Generator, choices, count: int) -> list:
    """`count` different ones of a sequence, in random order."""
    return [choices[i] for i in rng.permutation(len(choices))[:count]]


def digit(rng: Generator, split: str) -> Scene:
    """One handwritten digit."""
    value, picture = int(rng.integers(10)), background(rng)
    marks = draw_digits(picture, [value], rng, split)
    prompt = pick(rng, ("Which digit is this?", "What digit do you see?"))
    return Scene((Question("digit", prompt, str(value)),), (picture,), marks=(tuple(marks),))


def number(rng: Generator, split: str) -> Scene:
    """Two or three handwritten digits in a row."""
    digits = [int(d) for d in rng.integers(0, 10, rng.integers(2, 4))]
    picture = background(rng)
    marks = draw_digits(picture, digits, rng, split)
    prompt = pick(rng, ("Read the number.", "What number is written here?"))
    return Scene((Question("number", prompt, "".join(map(str, digits))),), (picture,), marks=(tuple(marks),))


def reading(rng: Generator, split: str) -> Scene:
    """A word of up to four letters."""
    text, picture = word(rng, split), background(rng)
    marks = draw_word(picture, text, rng, split)
    prompt = pick(rng, ("Read the word.", "What does it say?"))
    return Scene((Question("word", prompt, text),), (picture,), marks=(tuple(marks),))


def place(rng: Generator, cell: int) -> dict[str, float]:
    """Centre and radius of an object in a cell of the grid."""
    step = SIDE / CELLS
    row, column = divmod(cell, CELLS)
    jitter = rng.uniform(-5, 5, 2)
    return {"x": (column + 0.5) * step + jitter[0], "y": (row + 0.5) * step + jitter[1], "radius": rng.uniform(15, 21)}


def layout(rng: Generator, split: str) -> list[tuple[int, str, str]]:
    """(cell, colour, shape) of one to six objects; half the layouts draw from few kinds, so that there is to count."""
    while True:
        count = int(rng.integers(1, MOST_OBJECTS + 1))
        few = rng.random() < 0.5
        colors = some(rng, list(COLORS), 2 if few else len(COLORS))
        shapes = some(rng, SHAPES, 2 if few else len(SHAPES))
        if not few:
            count = min(count, 4)
        cells = sorted(some(rng, range(CELLS * CELLS), count))
        if few:
            objects = [(cell, pick(rng, colors), pick(rng, shapes)) for cell in cells]
        else:
            objects = [(cell, colors[i], shapes[i]) for i, cell in enumerate(cells)]
        if split_of(repr(objects)) == split:
            return objects


def objects(rng: Generator, split: str) -> Scene:
    """Coloured shapes: colour, shape, count and position."""
    found = layout(rng, split)
    items = [Item(color, shape, **place(rng, cell)) for cell, color, shape in found]
    picture = background(rng)
    marks = tuple(draw_item(picture, item, rng) for item in items)
    questions = attributes(items) + counts(rng, items) + positions([cell for cell, *_ in found], items)
    return Scene(tuple(some(rng, questions, len(questions))), (picture,), marks=(marks,))


def attributes(items: list[Item]) -> list[Question]:
    """Colour of what is the only one of its shape, and shape of what is the only one of its colour."""
    colors, shapes = [item.color for item in items], [item.shape for item in items]
    asked = [Question("color", f"What color is the {i.shape}?", i.color) for i in items if shapes.count(i.shape) == 1]
    return asked + [
        Question("shape", f"What shape is {i.color}?", i.shape) for i in items if colors.count(i.color) == 1
    ]


def counts(rng: Generator, items: list[Item]) -> list[Question]:
    """How many things, of a shape, of a colour, and sometimes of a shape that is not there."""
    shape, color = pick(rng, items).shape, pick(rng, items).color
    absent = pick(rng, [s for s in SHAPES if s not in {item.shape for item in items}])
    return [
        Question("count", "How many objects are there?", str(len(items))),
        Question("count", f"How many {_plural(shape)} are there?", str(sum(i.shape == shape for i in items))),
        Question("count", f"How many {color} objects are there?", str(sum(i.color == color for i in items))),
        *([Question("count", f"How many {_plural(absent)} are there?", "0")] if rng.random() < 0.3 else []),
    ]


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("ss") else "s")


def positions(cells: list[int], items: list[Item]) -> list[Question]:
    """Only what is clear: one object alone in the outermost occupied row or column, and at least two in all."""
    if len(items) < 2:
        return []
    asked = []
    for words, axis, sign in (
        ("on the left", 1, 1),
        ("on the right", 1, -1),
        ("at the top", 0, 1),
        ("at the bottom", 0, -1),
    ):
        keys = [sign * divmod(cell, CELLS)[axis] for cell in cells]
        if keys.count(min(keys)) == 1:
            asked.append(Question("position", f"What is {words}?", items[keys.index(min(keys))].name))
    return asked


def pictures(rng: Generator, split: str) -> Scene:
    """Two or three pictures, each with a shape or a digit."""
    count = int(rng.integers(2, 4))
    kinds = [bool(rng.random() < 0.6) for _ in range(count)]  # a shape, or a digit
    while True:
        shapes, colors = some(rng, SHAPES, count), some(rng, list(COLORS), count)
        digits = [int(d) for d in some(rng, range(10), count)]
        key = [(c, s) if kind else d for kind, c, s, d in zip(kinds, colors, shapes, digits, strict=True)]
        if all(not kind for kind in kinds) or split_of(repr(key)) == split:
            break
    marks: list[tuple[Mark, ...]] = []
    shown, questions = [], []
    for i, kind in enumerate(kinds):
        picture = background(rng)
        if kind:
            x, y = rng.uniform(45, SIDE - 45, 2)
            item = Item(colors[i], shapes[i], x, y, rng.uniform(20, 36))
            marks.append((draw_item(picture, item, rng),))
            questions.append(Question("images", f"Which picture shows a {item.shape}?", ORDINALS[i]))
        else:
            marks.append(tuple(draw_digits(picture, [digits[i]], rng, split)))
            questions.append(Question("images", f"Which picture shows the digit {digits[i]}?", ORDINALS[i]))
        answer = f"{colors[i]} {shapes[i]}" if kind else str(digits[i])
        questions.append(Question("images", f"What is in the {ORDINALS[i]} picture?", answer))
        shown.append(picture)
    return Scene(tuple(some(rng, questions, len(questions))), tuple(shown), marks=tuple(marks))


def listing(rng: Generator, split: str) -> Scene:
    """Text alone: about a list of things and numbers."""
    while True:
        count = int(rng.integers(2, 6))
        names, values = some(rng, NOUNS, count), [int(v) for v in some(rng, range(10), count)]
        listed = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
        if split_of(listed) == split:
            break
    asked = (
        ("Which number is the largest?", max(values)),
        ("Which number is the smallest?", min(values)),
        ("Which number comes first?", values[0]),
        ("Which number comes last?", values[-1]),
        ("How many things are listed?", count),
    )
    # the list stands in the first question only: the others can follow it in a conversation
    questions = [
        Question("list", prompt if i else f"{listed}. {prompt}", str(answer))
        for i, (prompt, answer) in enumerate(some(rng, asked, len(asked)))
    ]
    return Scene(tuple(questions))
