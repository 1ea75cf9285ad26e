"""Where prompts are always cut: behind messages and media, as every longer prompt is cut, too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from linmu.layout import MediaGrid, PromptLayout, Span, cut_points, pieces
from linmu.processing import ModelInputs
from linmu.runtimes.boundaries import LEAST_PIECE_TOKENS, boundaries, cut_prompt

END, VISION = 7, 9


def prompt(generator, length: int) -> tuple[ModelInputs, PromptLayout]:
    """Random text with message ends, pictures, and clips of two spans with text inside."""
    ids, media, spans = [], [], []
    while len(ids) < length:
        kind = generator.choice(["text", "text", "image", "clip"])
        if kind == "text":
            ids += generator.integers(10, 99, generator.integers(1, 90)).tolist() + [END] * int(
                generator.integers(0, 2)
            )
        elif kind == "image":
            spans.append(Span(np.arange(len(ids), len(ids) + 12), (1, 3, 4)))
            media.append(MediaGrid("image", ((1, 3, 4),)))
            ids += [VISION] * 12
        else:
            for _ in range(2):
                first, second = np.arange(len(ids), len(ids) + 6), np.arange(len(ids) + 8, len(ids) + 14)
                spans.append(Span(np.concatenate([first, second]), (2, 2, 3)))
                ids += [VISION] * 6 + [55, END] + [VISION] * 6 + [56]
            media.append(MediaGrid("video", ((4, 2, 3),)))
    return _made(ids, media, spans)


def _made(ids, media, spans) -> tuple[ModelInputs, PromptLayout]:
    positions = np.arange(len(ids))[None]
    return ModelInputs(np.array(ids, np.int64), "", tuple(media)), PromptLayout(
        len(ids), tuple(spans), positions, len(ids)
    )


def beginning(inputs: ModelInputs, layout: PromptLayout, stop: int) -> tuple[ModelInputs, PromptLayout]:
    """The same prompt up to `stop`, a place behind whole media."""
    spans = [span for span in layout.spans if span.positions[-1] < stop]
    tokens, media = sum(len(span.positions) for span in spans), []
    for medium in inputs.media:
        count = sum(t * h * w for t, h, w in medium.tiles)
        if tokens >= count:
            media.append(medium)
        tokens -= count
    return _made(inputs.input_ids[:stop].tolist(), media, spans)


@pytest.mark.parametrize("most", (70, 128, 2048))
def test_cuts_depend_on_nothing_behind_them(most):
    generator, tried = np.random.default_rng(most), 0
    for _ in range(30):
        inputs, layout = prompt(generator, 600)
        places = boundaries(inputs, layout, {END})
        cuts = cut_prompt(layout, places, most)
        for start, stop in cuts[:-1]:
            if stop not in places or stop - start < LEAST_PIECE_TOKENS:
                continue
            shorter = beginning(inputs, layout, stop)
            assert cut_prompt(shorter[1], boundaries(*shorter, {END}), most) == cuts[: cuts.index((start, stop)) + 1]
            tried += 1
    assert tried > 20


def test_cuts_are_legal_and_consecutive_and_no_piece_is_tiny_but_the_last():
    generator = np.random.default_rng(5)
    for _ in range(30):
        inputs, layout = prompt(generator, 500)
        places = boundaries(inputs, layout, {END})
        cuts = cut_prompt(layout, places, 200)
        assert [0, *(stop for _, stop in cuts)] == [*(start for start, _ in cuts), layout.length]
        assert {stop for _, stop in cuts} <= set(cut_points(layout)) and set(places) <= set(cut_points(layout))
        assert all(LEAST_PIECE_TOKENS <= stop - start <= 200 for start, stop in cuts[:-1])


def test_places_are_behind_message_ends_and_whole_media():
    ids = [1, END, 2, *[VISION] * 4, 3, *[VISION] * 2, END, *[VISION] * 2, 4, END]
    spans = [Span(np.arange(3, 7), (1, 2, 2)), Span(np.array([8, 9, 11, 12]), (2, 1, 2))]
    inputs, layout = _made(ids, [MediaGrid("image", ((1, 2, 2),)), MediaGrid("video", ((2, 1, 2),))], spans)
    assert boundaries(inputs, layout, {END}) == [2, 7, 13, 15]  # not 11: inside the clip's span
    assert boundaries(inputs, layout, ()) == [7, 13]
    tiles = replace(inputs, media=(MediaGrid("image", ((1, 2, 2), (1, 1, 4))),))
    assert boundaries(tiles, layout, ()) == [13]  # behind the last tile of a picture


def test_without_places_only_the_limit_cuts():
    inputs, layout = prompt(np.random.default_rng(1), 500)
    assert cut_prompt(layout, [], 90) == pieces(layout, 90)
    assert cut_prompt(layout, range(1, 10), 2048) == [(0, layout.length)]  # too near the beginning
