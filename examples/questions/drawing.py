"""Drawing: backgrounds, shapes, words and handwritten digits on square pictures of SIDE pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from examples.questions.content import COLORS, FONTS, digit_picture, font

SIDE = 160  # pixels of a picture; the model sees half of it
MARGIN = 6


@dataclass(frozen=True)
class Item:
    """A coloured shape; x, y its centre and radius its half size, in pixels."""

    color: str
    shape: str
    x: float = SIDE / 2
    y: float = SIDE / 2
    radius: float = 24.0

    @property
    def name(self) -> str:
        """As answers say it: "red circle"."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Mark:
    """What stands at a place of a picture: a shape, a digit or a letter, and the colour of a shape."""

    x: float
    y: float
    content: str
    color: str = ""


def background(rng: Generator) -> Image.Image:
    """A light plain colour with a little noise."""
    base = rng.integers(205, 256, 3)
    noise = rng.normal(0, rng.uniform(0, 5), (SIDE, SIDE, 1))
    return Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))


def _polygon(points: int, radius: float, inner: float | None = None, turn: float = -90.0) -> list[tuple[float, float]]:
    """Corners of a regular polygon, or of a star when `inner` gives its inner radius."""
    count = points * (2 if inner else 1)
    radii = [radius if inner is None or i % 2 == 0 else inner for i in range(count)]
    angles = [math.radians(turn + 360 * i / count) for i in range(count)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _cross(radius: float) -> list[tuple[float, float]]:
    arm = radius / 3
    quarter = [(arm, -radius), (arm, -arm), (radius, -arm), (radius, arm), (arm, arm), (arm, radius)]
    return quarter + [(-x, -y) for x, y in quarter]


def draw_item(picture: Image.Image, item: Item, rng: Generator) -> Mark:
    """Draw a shape in its colour, slightly varied; returns its mark."""
    mark = Mark(item.x, item.y, item.shape, item.color)
    r, draw = item.radius, ImageDraw.Draw(picture)
    fill = tuple(int(np.clip(c + rng.integers(-14, 15), 0, 255)) for c in COLORS[item.color])
    if item.shape == "circle":
        draw.ellipse((item.x - r, item.y - r, item.x + r, item.y + r), fill=fill)
        return mark
    corners = {
        "square": lambda: _polygon(4, r * 1.2, turn=-45),
        "triangle": lambda: _polygon(3, r * 1.15),
        "star": lambda: _polygon(5, r * 1.15, inner=r * 0.45),
        "cross": lambda: _cross(r),
        "diamond": lambda: [(0.75 * x, y) for x, y in _polygon(4, r * 1.15)],
    }[item.shape]()
    draw.polygon([(item.x + x, item.y + y) for x, y in corners], fill=fill)
    return mark


def draw_word(picture: Image.Image, text: str, rng: Generator, split: str) -> list[Mark]:
    """Write a word in a random font of the split, large, anywhere in the picture; returns the marks of its letters."""
    name = FONTS[split][rng.integers(len(FONTS[split]))]
    size = 52
    box = font(name, size).getbbox(text)
    room = (SIDE - 2 * MARGIN) / (box[2] - box[0])
    size = int(size * min(1.0, room) * rng.uniform(0.85, 1.0))
    left, top, right, bottom = font(name, size).getbbox(text)
    x = rng.uniform(MARGIN, max(MARGIN, SIDE - MARGIN - (right - left))) - left
    y = rng.uniform(MARGIN, SIDE - MARGIN - (bottom - top)) - top
    used = font(name, size)
    ImageDraw.Draw(picture).text((x, y), text, font=used, fill=_ink(rng))
    middles = [(used.getlength(text[:i]) + used.getlength(text[: i + 1])) / 2 for i in range(len(text))]
    return [Mark(x + middle, y + (top + bottom) / 2, text[i]) for i, middle in enumerate(middles)]


def draw_digits(picture: Image.Image, digits: list[int], rng: Generator, split: str) -> list[Mark]:
    """Write handwritten digits in a row, anywhere in the picture; returns their marks."""
    size = int(rng.uniform(0.85, 1.0) * min(64, (SIDE - 2 * MARGIN) / len(digits)))
    x = rng.uniform(MARGIN, SIDE - MARGIN - size * len(digits))
    y = rng.uniform(MARGIN, SIDE - MARGIN - size)
    ink, marks = Image.new("RGB", (size, size), _ink(rng)), []
    for i, digit in enumerate(digits):
        shift = rng.uniform(-4, 4)
        place = (int(x + i * size), int(np.clip(y + shift, 0, SIDE - size)))
        picture.paste(ink, place, digit_picture(rng, split, digit, size))
        marks.append(Mark(place[0] + size / 2, place[1] + size / 2, str(digit)))
    return marks


def _ink(rng: Generator) -> tuple[int, int, int]:
    """A dark colour."""
    return tuple(int(c) for c in rng.integers(0, 90, 3))  # type: ignore[return-value]
