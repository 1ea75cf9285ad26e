"""Scenes of stamps: where the stamps stand on a square picture, and the picture itself.

All numbers come from the `random.Random` handed in and all pixels from integer arithmetic or plain sums and products,
so that one seed gives one picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageEnhance
from stamps_source import Stamp, is_one_in

SIDE = 160  # pixels
GAP = 2  # free pixels on each side of a stamp
SIZES = (0.6, 0.7, 0.8, 0.9, 1.0)  # of the cell a stamp stands in
ENLARGED = 4.0  # at most: some stamps are 20 pixels high
FREE_CELL = {2: 96, 3: 84, 4: 76}  # pixels of a cell by number of stamps, when they stand anywhere
JITTER = 0.15  # brightness and colour strength, up or down
TRIES = 60
TEST_OF = 5  # one composition in this many is for testing
SEEN_STEP = 40  # of 255, in one channel: what an eye sees
SEEN_SHARE = 0.4  # of a stamp's pixels that must differ that much from what is behind them

# top left corner, width and height
Cell = tuple[int, int, int, int]
HALF = SIDE // 2
ROW: tuple[Cell, ...] = ((0, 0, HALF, SIDE), (HALF, 0, HALF, SIDE))
COLUMN: tuple[Cell, ...] = ((0, 0, SIDE, HALF), (0, HALF, SIDE, HALF))
CORNERS: tuple[Cell, ...] = tuple((x, y, HALF, HALF) for y in (0, HALF) for x in (0, HALF))
# steps of a gradient along x and y
DIRECTIONS = ((1, 0), (0, 1), (1, 1), (1, -1))


@dataclass(frozen=True)
class Placed:
    """A stamp in a scene: left, top, width, height in pixels; mirrored or not; brightness and colour strength."""

    stamp: Stamp
    box: Cell
    mirrored: bool
    brightness: float
    colour: float


@dataclass(frozen=True)
class Scene:
    """One picture of one to four stamps; `detail` tells apart the compositions of a single stamp."""

    placed: tuple[Placed, ...]
    detail: str = ""

    @property
    def stamps(self) -> tuple[Stamp, ...]:
        """The stamps in the order they were placed."""
        return tuple(item.stamp for item in self.placed)


def composition(scenes: Sequence[Scene]) -> str:
    """What train and test may not share: the set of stamps or, of a single one, its size, place and side too."""
    paths = sorted(stamp.path for scene in scenes for stamp in scene.stamps)
    return " + ".join(paths) + (f" {scenes[0].detail}" if len(paths) == 1 else "")


def is_for_test(scenes: Sequence[Scene]) -> bool:
    """Whether a composition belongs to the test side: decided by its hash, so for every seed alike."""
    held_out = any(stamp.held_out for scene in scenes for stamp in scene.stamps)
    return held_out or is_one_in(f"composition {composition(scenes)}", TEST_OF)


def place_alone(rng: Random, stamp: Stamp) -> Scene:
    """One stamp somewhere on the picture, in one of five sizes and nine places."""
    step, across, down = rng.randrange(len(SIZES)), rng.randrange(3), rng.randrange(3)
    mirrored = stamp.mirror and rng.random() < 0.5
    width, height = _fit(stamp, SIZES[step] * (SIDE - 2 * GAP), SIZES[step] * (SIDE - 2 * GAP))
    left, top = (_third(rng, SIDE - size, place) for size, place in ((width, across), (height, down)))
    placed = _placed(rng, stamp, (left, top, width, height), mirrored)
    return Scene((placed,), f"size {step} at {across},{down}{' mirrored' if mirrored else ''}")


def place_in_cells(rng: Random, stamps: Iterable[Stamp], cells: Iterable[Cell]) -> Scene:
    """Each stamp inside the cell of the same rank."""
    placed = []
    for stamp, (left, top, width, height) in zip(stamps, cells, strict=True):
        size = rng.choice(SIZES)
        w, h = _fit(stamp, size * (width - 2 * GAP), size * (height - 2 * GAP))
        box = (left + _between(rng, GAP, width - w - GAP), top + _between(rng, GAP, height - h - GAP), w, h)
        placed.append(_placed(rng, stamp, box, stamp.mirror and rng.random() < 0.5))
    return Scene(tuple(placed))


def place_anywhere(rng: Random, stamps: Sequence[Stamp]) -> Scene:
    """One to four stamps anywhere without overlap, or in corners where that does not work out."""
    if len(stamps) == 1:
        return place_alone(rng, stamps[0])
    boxes: list[Cell] = []
    cell = FREE_CELL[len(stamps)]
    for stamp in stamps:
        size = rng.choice(SIZES) * cell
        width, height = _fit(stamp, size, size)
        for _ in range(TRIES):
            box = (_between(rng, 0, SIDE - width), _between(rng, 0, SIDE - height), width, height)
            if not any(overlap(box, other) for other in boxes):
                boxes.append(box)
                break
        else:
            return place_in_cells(rng, stamps, rng.sample(CORNERS, len(stamps)))
    turned = [stamp.mirror and rng.random() < 0.5 for stamp in stamps]
    return Scene(tuple(_placed(rng, *item) for item in zip(stamps, boxes, turned, strict=True)))


def overlap(one: Cell, two: Cell) -> bool:
    """Whether two boxes come closer than the gap around stamps."""
    return all(
        one[axis] < two[axis] + two[axis + 2] + GAP and two[axis] < one[axis] + one[axis + 2] + GAP for axis in (0, 1)
    )


def draw(scene: Scene, rng: Random) -> Image.Image:
    """The scene as an RGB picture, on a background that every stamp stands out from."""
    best, best_share = None, -1.0
    drawn = [_draw_stamp(item) for item in scene.placed]
    for _ in range(TRIES):
        behind = background(rng)
        picture = behind.copy()
        for item, stamp in zip(scene.placed, drawn, strict=True):
            picture.paste(stamp, item.box[:2], stamp)
        share = min(
            _seen_share(behind, picture, item.box, stamp) for item, stamp in zip(scene.placed, drawn, strict=True)
        )
        if share > best_share:
            best, best_share = picture, share
        if share >= SEEN_SHARE:
            break
    assert best is not None
    return best


def background(rng: Random) -> Image.Image:
    """A plain colour or a gradient between two, often pale."""
    first = _colour(rng)
    if rng.random() < 0.4:
        return Image.new("RGB", (SIDE, SIDE), first)
    last, (across, down) = _colour(rng), rng.choice(DIRECTIONS)
    steps = np.arange(SIDE)[None, :] * across + np.arange(SIDE)[:, None] * down
    share = (steps - steps.min())[..., None] / (steps.max() - steps.min())
    start, end = np.array(first, np.float64), np.array(last, np.float64)
    return Image.fromarray(np.rint(start + share * (end - start)).astype(np.uint8))


def _colour(rng: Random) -> tuple[int, int, int]:
    pale = rng.random() < 0.5
    red, green, blue = ((rng.randrange(256) + 255 * pale) // (1 + pale) for _ in range(3))
    return red, green, blue


def _draw_stamp(item: Placed) -> Image.Image:
    picture = item.stamp.picture.resize(item.box[2:], Image.Resampling.LANCZOS)
    if item.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Color(ImageEnhance.Brightness(picture).enhance(item.brightness)).enhance(item.colour)


def _seen_share(behind: Image.Image, picture: Image.Image, box: Cell, stamp: Image.Image) -> float:
    """Share of a stamp (by opacity) that differs clearly from what is behind it."""
    left, top, width, height = box
    corners = (left, top, left + width, top + height)
    before, after = (np.asarray(image.crop(corners), np.int16) for image in (behind, picture))
    seen = np.abs(after - before).max(axis=-1) > SEEN_STEP
    return float(seen.sum() / max(1.0, np.asarray(stamp)[..., 3].sum() / 255))


def _placed(rng: Random, stamp: Stamp, box: Cell, mirrored: bool) -> Placed:
    brightness, colour = (1 + JITTER * (2 * rng.random() - 1) for _ in range(2))
    return Placed(stamp, box, mirrored, brightness, colour)


def _fit(stamp: Stamp, width: float, height: float) -> tuple[int, int]:
    """Width and height of a stamp inside a box, its proportions kept."""
    own_width, own_height = stamp.picture.size
    scale = min(width / own_width, height / own_height, ENLARGED)
    return max(1, int(own_width * scale)), max(1, int(own_height * scale))


def _third(rng: Random, room: int, place: int) -> int:
    """A place in the given third of the room there is to move."""
    return _between(rng, room * place // 3, room * (place + 1) // 3)


def _between(rng: Random, low: int, high: int) -> int:
    return rng.randint(low, max(low, high))
