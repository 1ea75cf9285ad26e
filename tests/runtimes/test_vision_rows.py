"""Vision calls medium by medium, from any vision token on, however the calls were given."""

from __future__ import annotations

import numpy as np
import pytest

from linmu.errors import InputError
from linmu.layout import MediaGrid, PromptLayout, Span
from linmu.processing import ModelInputs
from linmu.processing.media import ChainedCalls, TileCalls
from linmu.runtimes.base import VisionFeatures
from linmu.runtimes.vision_rows import VisionRows

TILE, FRAME = 4, 6  # tokens
DIM = 3


class Tower:
    """Gives every tile or frame rows that say which one it is, and counts calls."""

    def __init__(self, tokens: int):
        self.tokens, self.calls = tokens, []

    def encode(self, call) -> VisionFeatures:
        numbers = np.atleast_1d(call["pixel_values"].reshape(len(call["pixel_values"]), -1)[:, 0])
        self.calls.append(numbers.tolist())
        numbers = numbers[:1] if "grid" in call else numbers
        rows = np.repeat(numbers, self.tokens) * 10 + np.tile(np.arange(self.tokens), len(numbers))
        return VisionFeatures(np.repeat(rows[:, None], DIM, 1).astype(np.float32))


def tiles(*numbers: int) -> dict[str, np.ndarray]:
    return {"pixel_values": np.array(numbers, np.float32)[:, None, None, None] * np.ones((1, 3, 2, 2), np.float32)}


def frame(number: int) -> dict[str, np.ndarray]:
    return {"pixel_values": np.full((24, 5), number, np.float32), "grid": np.array([1, 4, 6])}


def filled(inputs: ModelInputs, tokens: int, count: int, start: int) -> tuple[list[int], list]:
    """Rows from vision token `start` on, of a prompt of vision tokens only, and the tower's calls."""
    layout = PromptLayout(count, (Span(np.arange(count), (1, 1, count)),), np.arange(count)[None], count)
    tower = Tower(tokens)
    rows, embeds = VisionRows(inputs, tower, layout, start), np.zeros((count - start, DIM), np.float32)
    middle = start + (count - start) // 2
    rows.fill(embeds[: middle - start], None, start, middle)
    rows.fill(embeds[middle - start :], None, middle, count)
    return embeds[:, 0].tolist(), tower.calls


IMAGE = ((1, 2, 2),)
TILE_MEDIA = (MediaGrid("image", IMAGE * 2), MediaGrid("image", IMAGE), MediaGrid("video", ((2, 2, 2),)))
TILE_PARTS = [(tiles(1, 2),), (tiles(3),), (tiles(4, 5),)]
FRAME_MEDIA = (MediaGrid("image", ((1, 2, 3),)), MediaGrid("video", ((3, 2, 3),)))
FRAME_PARTS = [(frame(1),), (frame(2), frame(3), frame(4))]


@pytest.mark.parametrize("calls", (TileCalls(TILE_PARTS), (tiles(1, 2, 3, 4, 5),), (tiles(1, 2, 3), tiles(4, 5))))
def test_tiles(calls):
    inputs = ModelInputs(np.zeros(20, np.int64), "", TILE_MEDIA, calls)
    wanted = [number * 10 + place for number in range(1, 6) for place in range(TILE)]
    skipped = {0: 0, 3: 0, 8: 1, 12: 2, 14: 2}  # media that were read to their end
    for start, first in skipped.items():
        rows, made = filled(inputs, TILE, 20, start)
        assert rows == wanted[start:] and made == [[1, 2], [3], [4, 5]][first:]


@pytest.mark.parametrize("calls", (ChainedCalls(FRAME_PARTS), tuple(call for part in FRAME_PARTS for call in part)))
def test_frames(calls):
    inputs = ModelInputs(np.zeros(24, np.int64), "", FRAME_MEDIA, calls)
    wanted = [number * 10 + place for number in range(1, 5) for place in range(FRAME)]
    for start, first in {0: 0, 5: 0, 6: 1, 13: 2, 18: 3, 20: 3}.items():
        rows, made = filled(inputs, FRAME, 24, start)
        assert rows == wanted[start:] and [call[0] for call in made] == [1, 2, 3, 4][first:]


def test_too_few_calls_are_refused():
    for calls in ((), (tiles(1, 2),)):
        with pytest.raises(InputError, match="fewer rows"):
            filled(ModelInputs(np.zeros(20, np.int64), "", TILE_MEDIA, calls), TILE, 20, 0)
