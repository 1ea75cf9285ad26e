"""Pictures of the real vision-language model's data: what is on them, and all that can be asked about them.

A round is one picture, or a few that belong together, with several questions. Training and test share no composition:
no set of stamps in one picture, no word to spell, no number, no handwritten digit, no font, no coloured shape in a
place that is held out. What has to be named in a test was named in training, in other compositions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.random import Generator
from PIL import Image
from stamps_questions import related
from stamps_scenes import COLUMN, CORNERS, ROW, Scene, draw, is_for_test, place_alone, place_in_cells
from stamps_source import Stamp, is_one_in

from examples.questions import clips, stills
from examples.questions.content import COLORS, NOUNS, SHAPES, word
from examples.questions.drawing import SIDE, Item, background, draw_digits, draw_item, draw_word
from examples.questions.stills import Question, pick, some

PICTURE = 112  # pixels a side as the model sees them: 64 patches of 14
ORDINALS = ("first", "second", "third", "fourth")
HELD_OUT_OF = 8  # one coloured shape in a place of so many is for testing
LONG_CLIP = 4  # frames
NUMBERS = ("one", "two", "three", "four")
SIDES: tuple[tuple[tuple[tuple[int, int, int, int], ...], tuple[str, ...]], ...] = (
    (ROW, ("on the left", "on the right")),
    (COLUMN, ("at the top", "at the bottom")),
    (CORNERS, ("at the top left", "at the top right", "at the bottom left", "at the bottom right")),
)
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
READ = (
    *NOUNS,
    *"apple bread chair cloud horse house juice lemon mouse piano river shoes snake table tiger train".split(),
)

Mark = tuple[float, float, float, float, str]  # left, top, right, bottom as shares of a side, and what is there


@dataclass(frozen=True)
class Round:
    """Pictures of PICTURE pixels in their order, questions about them, and what stands where on each."""

    pictures: tuple[Image.Image, ...]
    questions: tuple[Question, ...]
    marks: tuple[tuple[Mark, ...], ...]


def small(picture: Image.Image) -> Image.Image:
    """A drawn picture at the size that the model sees."""
    return picture.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS)


def place_name(cell: int) -> str:
    """A cell of the 3 x 3 grid in words: "top left", "left", "center", "bottom"."""
    row, column = divmod(cell, stills.CELLS)
    words = [name for name, index in ((ROWS[row], row), (COLUMNS[column], column)) if index != 1]
    return " ".join(words) or "center"


def with_article(name: str) -> str:
    """A coloured shape's name after "a" or "an"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def held_out(cell: int, color: str, shape: str) -> bool:
    """Whether a coloured shape in a cell is for testing only."""
    return is_one_in(f"{color} {shape} in {cell}", HELD_OUT_OF)


def shapes(rng: Generator, split: str) -> Round:
    """Coloured shapes on a grid; a test asks about those that are held out wherever it asks about one."""
    while True:
        found = stills.layout(rng, "train")
        tested = [held_out(*item) for item in found]
        if any(tested) == (split == "test"):
            break
    items = [Item(color, shape, **stills.place(rng, cell)) for cell, color, shape in found]
    picture = background(rng)
    for item in items:
        draw_item(picture, item, rng)
    cells = [cell for cell, *_ in found]
    names = [item.name for item in items]
    asked = [(item, cell) for item, cell, test in zip(items, cells, tested, strict=True) if test or split == "train"]
    known = {item.color for item, _ in asked} | {item.shape for item, _ in asked} | {item.name for item, _ in asked}
    questions = [q for q in stills.attributes(items) + stills.positions(cells, items) if q.answer in known]
    questions += stills.counts(rng, items)
    for item, cell in asked:
        if names.count(item.name) == 1:
            questions.append(Question("where", f"Where is the {item.name}?", place_name(cell)))
            questions.append(Question("presence", f"Is there {with_article(item.name)}?", "yes"))
            wrong = f"{pick(rng, list(COLORS))} {pick(rng, SHAPES)}"
            if wrong not in names:
                questions.append(Question("presence", f"Is there {with_article(wrong)}?", "no"))
    if len(items) <= 2:
        parts = [f"{with_article(name)} at the {place_name(cell)}" for name, cell in zip(names, cells, strict=True)]
        questions.append(Question("describe", "Describe the picture.", " and ".join(parts)))
    marks = tuple(_box(item.x, item.y, item.radius, item.name) for item in items)
    return Round((small(picture),), tuple(questions), (marks,))


def _box(x: float, y: float, radius: float, text: str) -> Mark:
    return ((x - radius) / SIDE, (y - radius) / SIDE, (x + radius) / SIDE, (y + radius) / SIDE, text)


class Things:
    """Stamps and clip art to draw from, evenly by name."""

    def __init__(self, stamps: Sequence[Stamp]):
        self.names: dict[str, list[Stamp]] = {}
        for stamp in stamps:
            if len(stamp.name.split()) <= 2:
                self.names.setdefault(stamp.name, []).append(replace(stamp, held_out=False))

    def draw(self, rng: Random, count: int) -> list[Stamp]:
        """Things of different names."""
        return [rng.choice(self.names[name]) for name in rng.sample(sorted(self.names), count)]

    def alone(self, generator: Generator, split: str) -> Round:
        """One thing somewhere."""
        rng, scenes, stamps = self._composed(generator, split, lambda rng: self._one(rng))
        questions = [Question("name", "What is this?", stamps[0].name)] * 3 + self._presence(rng, stamps)
        if stamps[0].kind is not None:
            questions.append(Question("kind", "What kind of thing is this?", stamps[0].kind))
        return self._drawn(rng, scenes, questions)

    def together(self, generator: Generator, split: str) -> Round:
        """Two to four things, each in its place."""
        chosen: list[tuple[Stamp, str]] = []

        def compose(rng: Random) -> list[Scene]:
            cells, places = rng.choice(SIDES)
            taken = sorted(rng.sample(range(len(cells)), rng.randint(2, len(cells))))
            stamps = self.draw(rng, len(taken))
            chosen[:] = [(stamp, places[index]) for stamp, index in zip(stamps, taken, strict=True)]
            return [place_in_cells(rng, stamps, [cells[index] for index in taken])]

        rng, scenes, stamps = self._composed(generator, split, compose)
        questions = [Question("side", f"What is {place}?", stamp.name) for stamp, place in chosen]
        questions += [Question("place", f"Where is the {stamp.name}?", place) for stamp, place in chosen[:2]]
        questions += [Question("side-kind", f"What kind of thing is {place}?", s.kind) for s, place in chosen if s.kind]
        questions.append(Question("things", "How many things are there?", NUMBERS[len(stamps) - 1]))
        questions += self._presence(rng, stamps)
        if len(chosen) == 2:
            sentence = " and ".join(f"{stamp.asked or stamp.name} {place}" for stamp, place in chosen)
            questions.append(Question("describe", "Describe the picture.", sentence))
        return self._drawn(rng, scenes, questions)

    def pictures(self, generator: Generator, split: str) -> Round:
        """Two or three pictures, each of one thing."""
        rng, scenes, stamps = self._composed(
            generator, split, lambda rng: [place_alone(rng, stamp) for stamp in self.draw(rng, rng.randint(2, 3))]
        )
        questions = []
        for index, stamp in enumerate(stamps):
            questions.append(Question("pictures", f"What is in the {ORDINALS[index]} picture?", stamp.name))
            questions.append(Question("pictures", f"Which picture shows the {stamp.name}?", ORDINALS[index]))
        return self._drawn(rng, scenes, questions)

    def _one(self, rng: Random) -> list[Scene]:
        return [place_alone(rng, self.draw(rng, 1)[0])]

    def _composed(
        self, generator: Generator, split: str, compose: Callable[[Random], list[Scene]]
    ) -> tuple[Random, list[Scene], list[Stamp]]:
        """Scenes of a composition that belongs to the split, and their things in order."""
        rng = Random(int(generator.integers(2**62)))
        while is_for_test(scenes := compose(rng)) != (split == "test"):
            pass
        return rng, scenes, [stamp for scene in scenes for stamp in scene.stamps]

    def _presence(self, rng: Random, stamps: list[Stamp]) -> list[Question]:
        """Whether one thing is there, and whether another one is."""
        there, other = rng.choice(stamps), self.draw(rng, 1)[0]
        questions = [Question("presence", f"Is there {there.asked}?", "yes")] if there.asked else []
        if other.asked and not any(related(other, stamp) for stamp in stamps):
            questions.append(Question("presence", f"Is there {other.asked}?", "no"))
        return questions

    def _drawn(self, rng: Random, scenes: list[Scene], questions: list[Question]) -> Round:
        marks = []
        for scene in scenes:
            boxes = [(item.box, item.stamp.name) for item in scene.placed]
            marks.append(tuple((x / SIDE, y / SIDE, (x + w) / SIDE, (y + h) / SIDE, n) for (x, y, w, h), n in boxes))
        return Round(tuple(small(draw(scene, rng)) for scene in scenes), tuple(questions), tuple(marks))


def spelling(rng: Generator, split: str) -> Round:
    """Up to four capital letters; those of a test occur in no training picture together."""
    text = word(rng, split)
    questions = [Question("spell", "Spell the word.", " ".join(text))]
    questions += [Question("letter", f"What is the {ORDINALS[i]} letter?", letter) for i, letter in enumerate(text)]
    return _written(rng, split, text, questions)


def reading(rng: Generator, split: str) -> Round:
    """A known word in capital or small letters, in a test in an unseen font."""
    text = pick(rng, READ)
    return _written(
        rng, split, text.upper() if rng.random() < 0.5 else text, [Question("read", "Read the word.", text)]
    )


def number(rng: Generator, split: str) -> Round:
    """A printed number of up to four digits; those of a test occur in no training picture."""
    while True:
        text = "".join(str(d) for d in rng.integers(0, 10, rng.integers(3 if split == "test" else 1, 5)))
        if is_one_in(f"number {text}", 10) == (split == "test") or (split == "train" and len(text) < 3):
            break
    questions = [Question("number", "Read the number.", text)]
    questions += [Question("digit", f"What is the {ORDINALS[i]} digit?", digit) for i, digit in enumerate(text)]
    return _written(rng, split, text, questions)


def _written(rng: Generator, split: str, text: str, questions: list[Question]) -> Round:
    picture = background(rng)
    letters = draw_word(picture, text, rng, split)
    half = 0.35 * SIDE / max(4, len(text))
    marks = tuple(_box(mark.x, mark.y, half, mark.content) for mark in letters)
    return Round((small(picture),), tuple(questions), (marks,))


def handwriting(rng: Generator, split: str) -> Round:
    """One to three handwritten digits; those of a test are other pieces of handwriting."""
    digits = [int(d) for d in rng.integers(0, 10, rng.integers(1, 4))]
    picture = background(rng)
    found = draw_digits(picture, digits, rng, split)
    marks = tuple(_box(mark.x, mark.y, 20, mark.content) for mark in found)
    question = Question("handwriting", "Read the number.", "".join(map(str, digits)))
    return Round((small(picture),), (question,), (marks,))


def clip(rng: Generator, split: str) -> Round:
    """Three or four frames as so many pictures: which way something moves, what comes when."""
    scene = pick(rng, (clips.motion, clips.order))(rng, split, int(rng.integers(3, LONG_CLIP + 1)))
    names = [[f"{mark.color} {mark.content}".strip() for mark in frame] for frame in scene.marks]
    marks = tuple(
        tuple(_box(mark.x, mark.y, 18, name) for mark, name in zip(frame, texts, strict=True))
        for frame, texts in zip(scene.marks, names, strict=True)
    )
    pictures = tuple(small(Image.fromarray(np.asarray(frame))) for frame in scene.frames)
    return Round(pictures, scene.questions, marks)


def makers(things: Things) -> dict[str, Callable[[Generator, str], Round]]:
    """Every kind of round by name."""
    return {
        "alone": things.alone,
        "together": things.together,
        "pictures": things.pictures,
        "shapes": shapes,
        "spelling": spelling,
        "reading": reading,
        "number": number,
        "handwriting": handwriting,
        "clip": clip,
    }


def chosen(rng: Generator, round_: Round, most: int) -> Round:
    """The round with at most `most` different questions: one of each task in random order, then second ones."""
    different = list(dict.fromkeys(some(rng, round_.questions, len(round_.questions))))
    earlier = [sum(other.task == question.task for other in different[:i]) for i, question in enumerate(different)]
    ranked = [question for _, question in sorted(zip(earlier, different, strict=True), key=lambda pair: pair[0])]
    return replace(round_, questions=tuple(ranked[:most]))
