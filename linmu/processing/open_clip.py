"""A clip without an end: its text and its pixels frame by frame, as the family's clips are made.

What the model reads is the user's turn of the chat template, up to the last frame so far:

    text before the clip | head of the clip | frame | frame | ...        (read while frames come)
    tail of the clip | question | end of the turn | start of an answer   (read when somebody asks)

Every frame ends with a control token, so the pieces have the tokens of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from linmu.errors import InputError
from linmu.layout.types import MediaGrid
from linmu.processing import vision
from linmu.processing.chat import Message
from linmu.processing.expand import TILE_CLIPS, ClipText, grid_clip
from linmu.processing.images import normalize, resize
from linmu.processing.media import video_settings
from linmu.processing.processor import ModelInputs, Processor
from linmu.processing.settings import GridSettings, ProcessorSettings
from linmu.processing.sources import MediaSource
from linmu.processing.video import checked_rate

PLACE = {"type": "video", "video": np.zeros((1, 1, 1, 3), np.uint8)}  # of the clip; its pixels are never looked at


@dataclass(frozen=True)
class SampledFrame:
    """A frame made as small as the model sees it: pixels [height, width, 3] uint8, at `slot` / fps seconds."""

    pixels: np.ndarray
    slot: int


@dataclass(frozen=True)
class ClipPart:
    """What one grid frame holds: the slots of its pictures (Qwen: a temporal patch of them), and its size in tokens."""

    slots: tuple[int, ...]
    size: tuple[int, int]


class OpenClip:
    """Makes the prompt of one clip without an end, and the inputs of the vision graph for each of its frames.

    fps: sampled frames a second; announced: the number of frames that the text before the clip tells (SmolVLM);
    span_frames: grid frames that are read at once (Qwen sizes pictures as for a clip of so many); max_pixels: of a
    frame (Qwen). Raises InputError where the family takes no clips, or the model has no chat template.
    """

    def __init__(
        self,
        processor: Processor,
        fps: float,
        span_frames: int,
        announced: int | None = None,
        system: str | None = None,
        max_pixels: int | None = None,
    ):
        self.processor, self.fps = processor, checked_rate(fps)
        self._settings: ProcessorSettings = MediaSource("video", None, max_pixels=max_pixels).settings(
            processor.settings
        )
        self.video = video_settings(self._settings)
        grid = self.video.frames
        self.step = grid.temporal_patch_size if isinstance(grid, GridSettings) else 1
        self.pictures = span_frames * self.step
        self._announced = announced or self.pictures
        self._size: tuple[int, int] | None = None  # of every picture after the first (Qwen)
        self.messages, self.text = self._beginning(system)

    def _beginning(self, system: str | None) -> tuple[tuple[Message, ...], str]:
        """The conversation with a question still to come, and its marked text up to the clip's placeholder."""
        content = [PLACE, {"type": "text", "text": "?"}]
        read = self.processor.read([{"role": "user", "content": content}], system=system)
        if read.messages is None or self.processor.chat_template is None:
            raise InputError("a model without a chat template", got="a stream to watch", expected="a chat template")
        text, token = self.processor.render_marked(read.messages), str(self._settings.tokens.video)
        if self.processor.control.count(text, token) != 1:
            raise InputError(
                "the chat template shows no clip",
                got=f"{text.count(token)} placeholders {token!r}",
                expected="one",
                fix="repair chat_template.jinja",
            )
        asked = {**read.messages[-1], "content": [{"type": "video"}]}
        return (*read.messages[:-1], asked), text[: text.index(token) + len(token)]

    def fit(self, pixels: np.ndarray) -> np.ndarray:
        """A frame [height, width, 3] uint8 as the model sees it."""
        frames = self.video.frames
        if not isinstance(frames, GridSettings):
            return vision.image_tiles(pixels, frames).pixels[0]
        if self._size is None:
            self._size = vision.video_frame_size(self.pictures, pixels.shape[0], pixels.shape[1], self.video)
        return resize(pixels, self._size, frames.resample)

    def part(self, frames: Sequence[SampledFrame]) -> tuple[ClipPart, dict[str, np.ndarray]]:
        """One grid frame of up to `step` pictures, the last one repeated, and its call of the vision graph."""
        slots, settings = tuple(frame.slot for frame in frames), self.video.frames
        pixels = np.stack([frame.pixels for frame in frames])
        if not isinstance(settings, GridSettings):
            rows, columns = self._settings.tokens.tile_grid
            return ClipPart(slots, (rows, columns)), {"pixel_values": normalize(pixels, settings)}
        patches = vision.VideoPatches(pixels, settings)
        _, h, w = patches.grid
        part = ClipPart(slots, (h // settings.merge_size, w // settings.merge_size))
        return part, {"pixel_values": patches[0], "grid": np.array([1, h, w], np.int64)}

    def inputs(self, parts: Sequence[ClipPart], number: int, begin: int) -> ModelInputs:
        """Token ids and grids of parts number, number + 1, ... of a clip that began at slot `begin`; no pixels."""
        rows, columns = parts[0].size
        clip = self._text(rows * columns)
        shown = [clip.frame(number + i, self._seconds(part, begin)) for i, part in enumerate(parts)]
        text = "".join(shown)
        if number == 0:
            text = self.text.removesuffix(str(self._settings.tokens.video)) + clip.head + text
        special = number == 0 and self.processor.adds_special_tokens(text, rendered=True)
        ids = self.processor.control.encode(text, special, "" if number == 0 else self._last_control(shown[0]))
        if ids is None:
            raise InputError("the tokenizer joins the frames of a clip", got=shown[0][:40], fix="convert it again")
        self.processor.check_ids(ids)
        grid = MediaGrid("video", ((len(parts), rows, columns),), self.step / self.fps)
        return ModelInputs(ids, "", (grid,))

    @property
    def tail(self) -> str:
        """The text behind the last frame, in front of what the template has there."""
        return self._text(1).tail

    def _text(self, tokens: int) -> ClipText:
        family, settings = self._settings.family, self._settings.tokens
        if isinstance(self.video.frames, GridSettings):
            return grid_clip(family, settings, tokens)
        return TILE_CLIPS[family](settings, self._announced, (self._announced - 1) / self.fps)

    def _seconds(self, part: ClipPart, begin: int) -> float:
        return (part.slots[0] + part.slots[-1] - 2 * begin) / 2 / self.fps

    def _last_control(self, text: str) -> str:
        return text[self.processor.control.last(text) :]
