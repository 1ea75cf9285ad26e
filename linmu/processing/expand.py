"""What stands in the prompt for an image or a video: the text that a placeholder is replaced by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from linmu.processing.settings import TokenSettings
from linmu.processing.vision import Tiles

UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_words(number: int) -> str:
    """An integer 0 to 999,999 in British English words: "one hundred and five"."""
    if number < 20:
        return UNITS[number]
    if number < 100:
        tens, units = divmod(number, 10)
        return TENS[tens - 2] + (f"-{UNITS[units]}" if units else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{UNITS[hundreds]} hundred" + (f" and {number_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joint = "" if not rest else (" and " if rest < 100 else ", ")
    return f"{number_words(thousands)} thousand{joint}{number_words(rest) if rest else ''}"


def one_tile(tokens: TokenSettings) -> str:
    """The tokens of one tile."""
    return str(tokens.image) * (tokens.tile_grid[0] * tokens.tile_grid[1])


def _framed_thumbnail(tokens: TokenSettings) -> str:
    return f"{tokens.fake_image}{tokens.global_image}{one_tile(tokens)}{tokens.fake_image}"


def split_image_text(tiles: Tiles, tokens: TokenSettings) -> str:
    """Idefics3 and SmolVLM: every tile with its row and column, a line a row, then the thumbnail."""
    if not tiles.rows:
        return _framed_thumbnail(tokens)
    rows = (
        "".join(f"{tokens.fake_image}<row_{r}_col_{c}>{one_tile(tokens)}" for c in range(1, tiles.columns + 1)) + "\n"
        for r in range(1, tiles.rows + 1)
    )
    return "".join(rows) + "\n" + _framed_thumbnail(tokens)


def canvas_image_text(tiles: Tiles, tokens: TokenSettings) -> str:
    """InternVL: all tiles between one start and one end token."""
    return f"{tokens.vision_start}{one_tile(tokens) * len(tiles.pixels)}{tokens.vision_end}"


def plain_image_text(tiles: Tiles, tokens: TokenSettings) -> str:
    """LLaVA: the image tokens alone."""
    return one_tile(tokens)


IMAGE_TEXTS = {
    "smolvlm": split_image_text,
    "idefics3": split_image_text,
    "internvl": canvas_image_text,
    "llava": plain_image_text,
}


@dataclass(frozen=True)
class ClipText:
    """What stands in a prompt for a clip: a text before its frames, one for each frame, and one behind them.

    frame: (number from 0, seconds from the start) -> text. Each ends with a control token, and the text before the
    frames is empty or ends where a frame's text may begin: pieces of a clip have the tokens of the whole.
    """

    frame: Callable[[int, float], str]
    head: str = ""
    tail: str = ""

    def whole(self, seconds: Sequence[float]) -> str:
        """A clip whose frames are shown at `seconds`."""
        return self.head + "".join(self.frame(i, second) for i, second in enumerate(seconds)) + self.tail


def smolvlm_clip(tokens: TokenSettings, frames: int, seconds: float) -> ClipText:
    """A sentence with the number of frames and the duration, then every frame behind its time."""
    tile = _framed_thumbnail(tokens)
    head = (
        f"You are provided the following series of {number_words(frames)} frames "
        f"from a {timedelta(seconds=int(seconds))} [H:MM:SS] video.\n"
    )
    return ClipText(lambda _, t: f"\nFrame from {int(t // 60):02d}:{int(t % 60):02d}:{tile}", head, "\n\n")


def internvl_clip(tokens: TokenSettings, frames: int, seconds: float) -> ClipText:
    """Every frame as a numbered image, a line each."""
    tile = f"{tokens.vision_start}{one_tile(tokens)}{tokens.vision_end}"
    return ClipText(lambda i, _: ("\n" if i else "") + f"Frame{i + 1}: {tile}")


TILE_CLIPS = {"smolvlm": smolvlm_clip, "internvl": internvl_clip}


def grid_clip(family: str, tokens: TokenSettings, tokens_per_frame: int) -> ClipText:
    """Qwen2.5-VL: the tokens of every grid frame, one run; Qwen3-VL: every grid frame behind its time."""
    pads = str(tokens.video) * tokens_per_frame
    if family != "qwen3_vl":
        return ClipText(lambda _, t: pads)
    return ClipText(lambda _, t: f"<{t:.1f} seconds>{tokens.vision_start}{pads}{tokens.vision_end}")


def grid_seconds(seconds: Sequence[float], step: int) -> list[float]:
    """The time of every grid frame: the mean of the first and last frame of its temporal patch."""
    times = [*seconds, *[seconds[-1]] * (-len(seconds) % step)]
    return [(times[i] + times[i + step - 1]) / 2 for i in range(0, len(times), step)]


def bare_placeholder(family: str, kind: str, tokens: TokenSettings) -> str:
    """One image or video in a prompt without a chat template."""
    token = str(tokens.image if kind == "image" else tokens.video)
    wrapped = family == "qwen2_5_vl" or (family == "qwen3_vl" and kind == "image")
    return f"{tokens.vision_start}{token}{tokens.vision_end}" if wrapped else token
