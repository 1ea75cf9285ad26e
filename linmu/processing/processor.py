"""The processor of a bundle: prompt, images and video to token ids, grids and pixels, without transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from linmu.errors import InputError
from linmu.families import get_family
from linmu.layout.types import MediaGrid
from linmu.processing import chat
from linmu.processing.chat import Message
from linmu.processing.control import MARK, ControlTokens, plain_text
from linmu.processing.forms import adapted, takes, takes_tools
from linmu.processing.known_media import KnownMedia, digests_of
from linmu.processing.media import ChainedCalls, Media, TileCalls, prepare
from linmu.processing.message_ends import message_end_ids
from linmu.processing.prompts import Prompt, marked_message, read_prompt
from linmu.processing.settings import GridSettings, ProcessorSettings
from linmu.processing.settings_file import read_settings
from linmu.processing.sources import KINDS, MediaSource
from linmu.processing.token_bytes import TokenBytes
from linmu.processing.tokens import StreamDecoder, byte_tokens, decode, load_tokenizer

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
    float32, "grid": [3] int64 = (1, h, w) in patches}). digests: a hash of each medium, () where none was made
    (`Processor.known`).
    """

    input_ids: np.ndarray
    text: str
    media: tuple[MediaGrid, ...] = ()
    vision_calls: Sequence[dict[str, np.ndarray]] = ()
    digests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Processor:
    """Settings, tokenizer and chat template of one model; make it with `from_folder`.

    vocabulary: rows of the model's embedding, where known: a prompt with a token beyond them is refused. known: tells
    media apart and prepares those seen before when their pixels are asked for; None: all at once, without digests.
    """

    settings: ProcessorSettings
    tokenizer: Tokenizer
    chat_template: str | None = None
    vocabulary: int | None = None
    known: KnownMedia | None = None

    @classmethod
    def from_folder(cls, folder: Path | str, vocabulary: int | None = None) -> Processor:
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
        return cls(settings, load_tokenizer(folder / TOKENIZER_FOLDER / TOKENIZER_FILE), source, vocabulary)

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
        if missing := [name for name, token_id in ids.items() if token_id is None]:
            raise InputError("the tokenizer lacks media tokens", got=f"no {missing}", fix="convert the model again")
        return tuple(token_id for token_id in ids.values() if token_id is not None)

    @cached_property
    def message_end_ids(self) -> frozenset[int]:
        """Ids that end an answer, or stand behind a message in the chat template (linmu.processing.message_ends)."""
        ends = frozenset(self.eos_token_ids)
        if self.chat_template is None:
            return ends
        return ends | message_end_ids(self.render_marked, self.control, self.media_token_ids)

    @cached_property
    def control(self) -> ControlTokens:
        """The control tokens and placeholders of this model."""
        tokens = self.settings.tokens
        names = (
            tokens.image,
            tokens.video,
            tokens.vision_start,
            tokens.vision_end,
            tokens.fake_image,
            tokens.global_image,
        )
        return ControlTokens(self.tokenizer, [name for name in names if name is not None])

    def encode(
        self,
        prompt: str | list[dict[str, Any]],
        images: Sequence[Any] = (),
        video: Any = None,
        video_fps: float | None = None,
        add_generation_prompt: bool = True,
        raw: bool = False,
        system: str | None = None,
        parse_special: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> ModelInputs:
        """Token ids, grids and pixels of a prompt.

        prompt: a text (one user message, images and video in front of it) or messages in the Hugging Face or OpenAI
        form; with `raw`, a text that already holds the model's own placeholders and control tokens. images: files,
        encoded bytes, data URLs, uint8 arrays, Pillow images; video: a file or uint8 frames [T, H, W, 3]. video_fps:
        frames a second to take from a video file, or at which the frames of an array were taken. system: a system
        message in front. parse_special: control tokens written in the prompt are control tokens, not text. Raises
        InputError on an empty prompt, an unreadable image, or placeholders and media that do not match.
        """
        options: dict[str, Any] = {"raw": raw, "system": system, "parse_special": parse_special, "tools": tools}
        read = self.read(prompt, images, video, video_fps=video_fps, **options)
        text = self.text_of(read, add_generation_prompt)
        inputs = self.tokenized(text, read.media, self.adds_special_tokens(text, read.messages is not None))
        assert inputs is not None  # nothing stands before it
        return inputs

    def read(self, prompt: str | list[dict[str, Any]], images: Any = (), video: Any = None, **options: Any) -> Prompt:
        """The prompt checked and marked; options as in `encode`."""
        has_template = self.chat_template is not None
        read = read_prompt(
            prompt, images, video, settings=self.settings, control=self.control, has_template=has_template, **options
        )
        if options.get("system") is not None:
            self._check_system()
        if options.get("tools") is not None and not self.takes_tools:
            raise InputError("tools", got="a chat template that shows none", fix="leave them out")
        return read

    def text_of(self, prompt: Prompt, add_generation_prompt: bool = True) -> str:
        """The marked text of a prompt."""
        if prompt.messages is None:
            return prompt.text
        return self.render_marked(prompt.messages, add_generation_prompt, prompt.tools)

    def render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """The chat text of messages in the Hugging Face form; InputError without a chat template."""
        return plain_text(self.render_marked(self.marked(messages), add_generation_prompt))

    def marked(self, messages: list[dict[str, Any]]) -> tuple[Message, ...]:
        """Messages with their texts marked, without their media."""
        return tuple(marked_message(message, self.control.mark_parts) for message in chat.check_messages(messages))

    def render_marked(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> str:
        """The marked chat text of marked messages (and of marked tools)."""
        source = self._template(messages)
        variables = self.settings.tokens.template_variables
        return chat.render(source, adapted(source, messages, variables), add_generation_prompt, variables, tools)

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template shows tools."""
        variables = tuple(sorted(self.settings.tokens.template_variables.items()))
        return self.chat_template is not None and takes_tools(self.chat_template, variables)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids, without special tokens."""
        ids = [int(i) for i in ids]
        if self._bytes_of and not self._bytes_of.keys().isdisjoint(ids):
            decoder = self.stream_decoder()
            return "".join([decoder.push(i) for i in ids]) + decoder.flush()
        return decode(self.tokenizer, ids)

    def stream_decoder(self) -> StreamDecoder:
        """A fresh incremental decoder for one answer."""
        return StreamDecoder(partial(decode, self.tokenizer), self._bytes_of)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text; a control token's name."""
        return self._token_bytes.of(token)

    @cached_property
    def _token_bytes(self) -> TokenBytes:
        return TokenBytes(self.tokenizer)

    @cached_property
    def _bytes_of(self) -> dict[int, int]:
        return byte_tokens(self.tokenizer)

    def _template(self, messages: Sequence[Message]) -> str:
        if self.chat_template is None:
            raise InputError("the model has no chat template", got="messages", fix="give the prompt as a text")
        lists = [message["content"] for message in messages if isinstance(message.get("content"), list)]
        if self.settings.family == "smolvlm" and any(part["type"] == "video" for parts in lists for part in parts):
            return chat.SMOLVLM_VIDEO_TEMPLATE
        return self.chat_template

    def _check_system(self) -> None:
        variables = tuple(sorted(self.settings.tokens.template_variables.items()))
        if self.chat_template is None or not any(takes(self.chat_template, "system", variables)):
            raise InputError(
                "a system prompt", got="a chat template that shows none", fix="put it in front of the prompt"
            )

    def _check_placeholders(self, text: str, images: int, videos: int) -> None:
        tokens = self.settings.tokens
        for kind, token, count in (("image", tokens.image, images), ("video", tokens.video, videos)):
            placeholders = self.control.count(text, token) if token is not None else 0
            if count and token is None:
                raise InputError(f"the family {self.settings.family} takes no {kind}", got=count, fix="leave it out")
            if placeholders != count:
                raise InputError(
                    f"{kind} placeholders in the prompt do not match the {kind}s given",
                    got=f"{placeholders} placeholders {token!r} and {count} {kind}s",
                    fix=f"give one {kind} per placeholder (and check that the chat template renders {kind}s)",
                )

    def tokenized(
        self, text: str, media: Sequence[MediaSource], add_special_tokens: bool, context: str = ""
    ) -> ModelInputs | None:
        """Ids, grids and pixels of a marked text that follows `context` (another one, which is not encoded again).

        None when a token reaches from the one into the other. Raises InputError as `encode` does.
        """
        counts = [sum(item.kind == kind for item in media) for kind in KINDS]
        self._check_placeholders(text, *counts)  # an unreadable video or a bad count should not wait for the images
        prepared: dict[str, list[Media]] = {kind: [] for kind in KINDS}
        for item in media:
            prepared[item.kind].append((self.known.prepare if self.known else prepare)(item, self.settings))
        tokens = self.settings.tokens
        kinds = {token: kind for kind, token in (("image", tokens.image), ("video", tokens.video)) if token}
        waiting = {kind: iter(items) for kind, items in prepared.items()}
        ordered: list[Media] = []

        def replace(match: re.Match[str]) -> str:
            ordered.append(next(waiting[kinds[match.group()]]))
            return ordered[-1].text

        expanded = re.sub(f"(?<!{MARK})(?:" + ("|".join(map(re.escape, kinds)) or "(?!)") + ")", replace, text)
        ids = self.control.encode(expanded, add_special_tokens, context)
        if ids is None:
            return None
        self.check_ids(ids)
        grids = tuple(item.grid for item in ordered)
        expected = sum(t * h * w for grid in grids for t, h, w in grid.tiles)
        vision_tokens = int(np.isin(ids, self.media_token_ids).sum()) if kinds else 0
        if vision_tokens != expected:
            raise InputError(
                "media tokens in the prompt do not match its images",
                got=vision_tokens,
                expected=expected,
                fix="leave the model's special tokens out of the text",
            )
        return ModelInputs(ids, plain_text(text), grids, self._calls(ordered), digests_of(ordered))

    def check_ids(self, ids: np.ndarray) -> None:
        """Raise InputError for token ids that the model has no embedding for."""
        beyond = ids[ids >= self.vocabulary] if self.vocabulary is not None else ids[:0]
        if len(beyond):
            raise InputError(
                "the prompt holds a token that the model has no embedding for",
                got=f"{self.tokenizer.id_to_token(int(beyond[0]))!r} (id {beyond[0]})",
                expected=f"ids below {self.vocabulary}",
                fix="leave it out of the text",
            )

    def adds_special_tokens(self, text: str, rendered: bool) -> bool:
        """Whether the tokenizer puts its own (BOS) in front of a conversation: never twice, nor to a text-only chat."""
        if not rendered:
            return True
        bos = self.settings.tokens.template_variables.get("bos_token")
        return self.settings.tokens.chat_adds_special_tokens and not (bos is not None and text.startswith(bos))

    def _calls(self, ordered: list[Media]) -> Sequence[dict[str, np.ndarray]]:
        parts = [item.calls for item in ordered]
        return ChainedCalls(parts) if isinstance(self.settings.image, GridSettings) else TileCalls(parts)
