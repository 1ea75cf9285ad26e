"""What stands in the prompt for an image or a video: the text that a placeholder is replaced by."""

from __future__ import annotations

from datetime import timedelta

from linmu.processing.settings import TokenSettings
from linmu.processing.video import Clip
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


def _one_tile(tokens: TokenSettings) -> str:
    return str(tokens.image) * (tokens.tile_grid[0] * tokens.tile_grid[1])


def _framed_thumbnail(tokens: TokenSettings) -> str:
    return f"{tokens.fake_image}{tokens.global_image}{_one_tile(tokens)}{tokens.fake_image}"


def split_image_text(tiles: Tiles, tokens: TokenSettings) -> str:
    """Idefics3 and SmolVLM: every tile with its row and column, a line a row, then the thumbnail."""
    if not tiles.rows:
        return _framed_thumbnail(tokens)
    rows = (
        "".join(f"{tokens.fake_image}<row_{r}_col_{c}>{_one_tile(tokens)}" for c in range(1, tiles.columns + 1)) + "\n"
        for r in range(1, tiles.rows + 1)
    )
    return "".join(rows) + "\n" + _framed_thumbnail(tokens)


def canvas_image_text(tiles: Tiles, tokens: TokenSettings) -> str:
    """InternVL: all tiles between one start and one end token."""
    return f"{tokens.vision_start}{_one_tile(tokens) * len(tiles.pixels)}{tokens.vision_end}"


def plain_image_text(tiles: Tiles, tokens: TokenSettings) -> str:
    """LLaVA: the image tokens alone."""
    return _one_tile(tokens)


IMAGE_TEXTS = {
    "smolvlm": split_image_text,
    "idefics3": split_image_text,
    "internvl": canvas_image_text,
    "llava": plain_image_text,
}


def smolvlm_video_text(clip: Clip, tokens: TokenSettings, duration: float | None) -> str:
    """A sentence with the number of frames and the duration, then every frame behind its time."""
    seconds = int(duration if duration is not None else clip.timestamps[-1])
    frames = "".join(
        f"\nFrame from {int(t // 60):02d}:{int(t % 60):02d}:{_framed_thumbnail(tokens)}" for t in clip.timestamps
    )
    return (
        f"You are provided the following series of {number_words(len(clip.indices))} frames "
        f"from a {timedelta(seconds=seconds)} [H:MM:SS] video.\n{frames}\n\n"
    )


def internvl_video_text(clip: Clip, tokens: TokenSettings, duration: float | None) -> str:
    """Every frame as a numbered image, a line each."""
    frame = f"{tokens.vision_start}{_one_tile(tokens)}{tokens.vision_end}"
    return "\n".join(f"Frame{i}: {frame}" for i in range(1, len(clip.indices) + 1))


VIDEO_TEXTS = {"smolvlm": smolvlm_video_text, "internvl": internvl_video_text}


def qwen3_video_text(clip: Clip, tokens: TokenSettings, step: int, tokens_per_frame: int) -> str:
    """Every grid frame behind its time: the mean of the first and last frame of its temporal patch."""
    times = clip.timestamps
    times += times[-1:] * (-len(times) % step)
    pads = str(tokens.video) * tokens_per_frame
    return "".join(
        f"<{(times[i] + times[i + step - 1]) / 2:.1f} seconds>{tokens.vision_start}{pads}{tokens.vision_end}"
        for i in range(0, len(times), step)
    )


def bare_placeholder(family: str, kind: str, tokens: TokenSettings) -> str:
    """One image or video in a prompt without a chat template."""
    token = str(tokens.image if kind == "image" else tokens.video)
    wrapped = family == "qwen2_5_vl" or (family == "qwen3_vl" and kind == "image")
    return f"{tokens.vision_start}{token}{tokens.vision_end}" if wrapped else token
