"""The processor of a bundle: prompt, images and video to token ids, grids and pixels, without transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from linmu.errors import InputError
from linmu.families import get_family
from linmu.layout.types import MediaGrid
from linmu.processing import chat
from linmu.processing.expand import bare_placeholder
from linmu.processing.images import ImageSource
from linmu.processing.media import ChainedCalls, Media, VideoSource, prepare_image, prepare_video
from linmu.processing.settings import GridSettings, ProcessorSettings, read_settings
from linmu.processing.tokens import StreamDecoder, load_tokenizer, to_ids

PROCESSOR_FILE = "processor.json"
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FOLDER = "tokenizer"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class ModelInputs:
    """A prompt ready for the graphs.

    input_ids: [S] int64; text: the chat text before placeholders are expanded; media: grids in tokens after merging,
    in the order of the prompt; vision_calls: inputs of the vision graph, a dict per call, in the order of the tokens
    and made when asked for
    (tile families: {"pixel_values": [n, 3, H, W] float32}; Qwen, per grid frame: {"pixel_values": [h*w, C*t*p*p]
    float32, "grid": [3] int64 = (1, h, w) in patches}).
    """

    input_ids: np.ndarray
    text: str
    media: tuple[MediaGrid, ...] = ()
    vision_calls: Sequence[dict[str, np.ndarray]] = ()


@dataclass(frozen=True)
class Processor:
    """Settings, tokenizer and chat template of one model; make it with `from_folder`."""

    settings: ProcessorSettings
    tokenizer: Tokenizer
    chat_template: str | None = None

    @classmethod
    def from_folder(cls, folder: Path | str) -> Processor:
        """Read a bundle's processor.json, tokenizer/tokenizer.json and chat_template.jinja (which may be absent).

        Raises InputError (BundleError) naming the file that is missing or wrong.
        """
        folder = Path(folder)
        settings = read_settings(folder / PROCESSOR_FILE)
        get_family(settings.family)
        template = folder / TEMPLATE_FILE
        try:
            source = template.read_text(encoding="utf-8") if template.is_file() else None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {template}", got=error, expected="a text in UTF-8") from error
        return cls(settings, load_tokenizer(folder / TOKENIZER_FOLDER / TOKENIZER_FILE), source)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return self.settings.tokens.eos_token_ids

    @cached_property
    def media_token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that vision embeddings replace: the image token, and for Qwen the video token."""
        tokens = self.settings.tokens
        names = [tokens.image, tokens.video if isinstance(self.settings.image, GridSettings) else None]
        ids = {name: self.tokenizer.token_to_id(name) for name in names if name is not None}
        if missing := [name for name, found in ids.items() if found is None]:
            raise InputError("the tokenizer lacks media tokens", got=f"no {missing}", fix="convert the model again")
        return tuple(found for found in ids.values() if found is not None)

    def encode(
        self,
        prompt: str | list[dict[str, Any]],
        images: Sequence[ImageSource] = (),
        video: VideoSource | None = None,
        video_fps: float | None = None,
        add_generation_prompt: bool = True,
        raw: bool = False,
    ) -> ModelInputs:
        """Token ids, grids and pixels of a prompt.

        prompt: a text (one user message, images and video in front of it) or messages in the Hugging Face form;
        with `raw`, a text that already holds the model's own placeholders. video_fps: frames a second to take from a
        video file, or at which the frames of an array were taken. Raises InputError on an empty prompt, an unreadable
        image, or placeholders and media that do not match.
        """
        images = [images] if isinstance(images, (str, Path)) or not isinstance(images, Sequence) else list(images)
        videos: list[VideoSource] = [] if video is None else [video]
        if isinstance(prompt, str):
            if not prompt.strip() and not images and not videos:
                raise InputError("the prompt is empty", expected="a text, an image or a video")
            text = prompt if raw else self._text_of_prompt(prompt, len(images), len(videos), add_generation_prompt)
        elif raw:
            raise InputError("prompt", got=type(prompt).__name__, expected="a text", fix="leave out raw=True")
        else:
            messages = chat.check_messages(prompt)
            images = _fill(chat.media_parts(messages, "image"), images, "image")
            videos = _fill(chat.media_parts(messages, "video"), videos, "video")
            if not images and not videos and not chat.has_text(messages):
                raise InputError("the prompt is empty", expected="a text, an image or a video")
            text = self.render(messages, add_generation_prompt)
        # an unreadable video or a bad count should not wait for the images
        self._check_placeholders(text, len(images), len(videos))
        prepared = {
            "image": [prepare_image(source, self.settings) for source in images],
            "video": [prepare_video(source, video_fps, self.settings) for source in videos],
        }
        return self._assemble(text, prepared, rendered=not raw and self.chat_template is not None)

    def render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """The chat text of messages in the Hugging Face form; InputError without a chat template."""
        source = self.chat_template
        if source is None:
            raise InputError("the model has no chat template", got="messages", fix="give the prompt as a text")
        if self.settings.family == "smolvlm" and chat.media_parts(messages, "video"):
            source = chat.SMOLVLM_VIDEO_TEMPLATE
        return chat.render(source, messages, add_generation_prompt, self.settings.tokens.template_variables)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids, without special tokens."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def stream_decoder(self) -> StreamDecoder:
        """A fresh incremental decoder for one answer."""
        return StreamDecoder(self.decode)

    def _text_of_prompt(self, prompt: str, images: int, videos: int, add_generation_prompt: bool) -> str:
        """A plain prompt as chat text, or behind bare placeholders where there is no chat template."""
        text_only = get_family(self.settings.family).text_only
        if self.chat_template is not None:
            return self.render([chat.user_message(prompt, images, videos, text_only)], add_generation_prompt)
        family, tokens = self.settings.family, self.settings.tokens
        if text_only:
            return prompt
        pictures = bare_placeholder(family, "image", tokens) * images if images else ""
        return pictures + (bare_placeholder(family, "video", tokens) * videos if videos else "") + prompt

    def _check_placeholders(self, text: str, images: int, videos: int) -> None:
        tokens = self.settings.tokens
        for kind, token, count in (("image", tokens.image, images), ("video", tokens.video, videos)):
            found = text.count(token) if token is not None else 0
            if count and token is None:
                raise InputError(f"the family {self.settings.family} takes no {kind}", got=count, fix="leave it out")
            if found != count:
                raise InputError(
                    f"{kind} placeholders in the prompt do not match the {kind}s given",
                    got=f"{found} placeholders {token!r} and {count} {kind}s",
                    fix=f"give one {kind} per placeholder (and check that the chat template renders {kind}s)",
                )

    def _assemble(self, text: str, prepared: dict[str, list[Media]], rendered: bool) -> ModelInputs:
        """Replace placeholders in order, tokenize, and put pixels in the order of the tokens."""
        tokens = self.settings.tokens
        kinds = {token: kind for kind, token in (("image", tokens.image), ("video", tokens.video)) if token}
        waiting = {kind: iter(items) for kind, items in prepared.items()}
        ordered: list[Media] = []

        def replace(match: re.Match[str]) -> str:
            ordered.append(next(waiting[kinds[match.group()]]))
            return ordered[-1].text

        expanded = re.sub("|".join(map(re.escape, kinds)) or "(?!)", replace, text)
        ids = to_ids(self.tokenizer, expanded, self._adds_special_tokens(text, rendered))
        media = tuple(item.grid for item in ordered)
        expected = sum(t * h * w for grid in media for t, h, w in grid.tiles)
        found = int(np.isin(ids, self.media_token_ids).sum()) if kinds else 0
        if found != expected:
            raise InputError(
                "media tokens in the prompt do not match its images", got=found, expected=expected,
                fix="leave the model's special tokens out of the text",
            )  # fmt: skip
        return ModelInputs(ids, text, media, self._calls(ordered))

    def _adds_special_tokens(self, text: str, rendered: bool) -> bool:
        """Whether the tokenizer puts its own (BOS) in front: never twice, and never to a text-only chat."""
        if not rendered:
            return True
        bos = self.settings.tokens.template_variables.get("bos_token")
        return self.settings.tokens.chat_adds_special_tokens and not (bos is not None and text.startswith(bos))

    def _calls(self, ordered: list[Media]) -> Sequence[dict[str, np.ndarray]]:
        calls = ChainedCalls([item.calls for item in ordered])
        if not calls or isinstance(self.settings.image, GridSettings):
            return calls
        tiles = [call["pixel_values"] for call in calls]
        if len(sizes := sorted({array.shape[2:] for array in tiles})) > 1:
            raise InputError(
                "tiles of images and frames of videos differ in size", got=sizes, expected="one size",
                fix="correct the sizes in the model's preprocessor files and convert it again",
            )  # fmt: skip
        return ({"pixel_values": np.concatenate(tiles)},)


def _fill(parts: list[Any], given: Sequence[Any], kind: str) -> list[Any]:
    """Media of the messages' parts: their own, and for bare placeholders those given beside the messages, in order."""
    bare = sum(part is None for part in parts)
    if bare != len(given):
        raise InputError(
            f"{kind} parts of the messages do not match the {kind}s given",
            got=f"{bare} parts without a file and {len(given)} {kind}s",
            fix=f"give one {kind} per part",
        )
    rest = iter(given)
    return [part if part is not None else next(rest) for part in parts]
