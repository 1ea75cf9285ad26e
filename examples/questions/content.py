"""What pictures are made of, divided between training and test.

No handwritten digit, word, font or layout of a test picture occurs in training.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFont

from linmu.errors import InputError, MissingComponentError

SPLITS = ("train", "test")
TEST_SHARE = 10  # one key in ten belongs to the test
COLORS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (238, 215, 30),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (140, 50, 170),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
VOWELS, CONSONANTS = "AEIOU", "BCDFGHJKLMNPRSTVWZ"
ORDINALS = ("first", "second", "third")
NOUNS = tuple("cup key hat box pen bag car dog cat bed map bus fan jar net toy".split())
FONTS = {
    "train": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSerif",
        "DejaVuSansMono",
        "DejaVuSans-BoldOblique",
        "DejaVuSerif-Italic",
        "STIXGeneral",
        "STIXGeneralBol",
        "cmr10",
        "cmb10",
        "cmtt10",
    ),
    "test": ("DejaVuSerif-Bold", "DejaVuSansMono-Bold", "DejaVuSans-Oblique", "cmss10"),
}


def split_of(key: str) -> str:
    """The split that a piece of content belongs to, from a hash of its description."""
    return SPLITS[hashlib.sha256(key.encode()).digest()[0] % TEST_SHARE == 0]


def check_split(split: str) -> None:
    """Raise InputError unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise InputError("split", got=repr(split), expected="one of " + ", ".join(SPLITS))


@cache
def digit_images(split: str) -> dict[int, tuple[np.ndarray, ...]]:
    """Handwritten digits of scikit-learn (8 x 8, 0..16) by value; every fifth of the 1,797 is a test digit."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingComponentError("scikit-learn", needed_for="the demo's handwritten digits", extra="demo") from error
    data = load_digits()
    chosen = [i for i in range(len(data.target)) if (i % 5 == 0) == (split == "test")]
    return {d: tuple(data.images[i] for i in chosen if data.target[i] == d) for d in range(10)}


@cache
def font_file(name: str) -> Path:
    """A font that matplotlib ships."""
    found = importlib.util.find_spec("matplotlib")
    if found is None or not found.submodule_search_locations:
        raise MissingComponentError("matplotlib", needed_for="the fonts of the demo's words", extra="demo")
    return Path(found.submodule_search_locations[0], "mpl-data", "fonts", "ttf", f"{name}.ttf")


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels."""
    return ImageFont.truetype(font_file(name), size)


def word(rng: Generator, split: str) -> str:
    """3 or 4 capital letters, half of them pronounceable, half at random; in training also 1 and 2 letters."""
    while True:
        length = int(rng.integers(3 if split == "test" else 1, 5))
        if rng.random() < 0.5:
            parts = (CONSONANTS, VOWELS) if rng.random() < 0.7 else (VOWELS, CONSONANTS)
            text = "".join(parts[i % 2][rng.integers(len(parts[i % 2]))] for i in range(length))
        else:
            text = "".join(LETTERS[i] for i in rng.integers(0, 26, length))
        if split_of(text) == split:
            return text


def digit_picture(rng: Generator, split: str, digit: int, size: int) -> Image.Image:
    """One handwritten digit, turned a little, as a mask [size, size] with 255 for ink."""
    images = digit_images(split)[digit]
    pixels = (images[rng.integers(len(images))] * (255 / 16)).astype(np.uint8)
    large = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
    return large.rotate(float(rng.uniform(-10, 10)), Image.Resampling.BILINEAR)
