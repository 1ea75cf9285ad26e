"""Training and test content have nothing in common."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.questions.content import FONTS, check_split, digit_images, font, split_of, word
from linmu.errors import InputError


def test_digits_are_divided_without_a_rest():
    train, test = digit_images("train"), digit_images("test")
    seen = {image.tobytes() for images in train.values() for image in images}
    held_out = {image.tobytes() for images in test.values() for image in images}
    assert not seen & held_out
    assert sum(len(images) for half in (train, test) for images in half.values()) == 1797
    assert min(len(images) for images in test.values()) >= 20


def test_fonts_are_divided_and_can_be_read():
    assert not set(FONTS["train"]) & set(FONTS["test"])
    for name in FONTS["train"] + FONTS["test"]:
        widths = {font(name, 40).getlength(letter) for letter in "IMWO"}
        assert min(widths) > 0
        masks = [bytes(font(name, 40).getmask(letter)) for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
        assert len(set(masks)) == 26, name  # a font without these letters draws the same box for all


@given(st.text())
def test_every_key_has_one_split(key):
    assert split_of(key) in ("train", "test")
    assert split_of(key) == split_of(key)


def test_about_a_tenth_is_for_the_test():
    share = np.mean([split_of(f"key {i}") == "test" for i in range(5000)])
    assert 0.08 < share < 0.13


@pytest.mark.parametrize("split", ["train", "test"])
def test_words_are_of_their_split(split):
    rng = np.random.default_rng(0)
    words = [word(rng, split) for _ in range(300)]
    assert {split_of(text) for text in words} == {split}
    assert {len(text) for text in words} == ({3, 4} if split == "test" else {1, 2, 3, 4})
    assert len(set("".join(words))) == 26


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match="split; got 'dev'"):
        check_split("dev")
