"""What a caller asks: marked messages or a marked text (linmu.processing.control), and the media in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from linmu.errors import InputError
from linmu.families import get_family
from linmu.processing import chat
from linmu.processing.chat import Message
from linmu.processing.control import ControlTokens, check_text
from linmu.processing.expand import bare_placeholder
from linmu.processing.settings import ProcessorSettings
from linmu.processing.sources import KINDS, SOURCE_KEYS, MediaSource, listed, media_of_part

Marker = Callable[[Sequence[str]], list[str]]
WHOLE_ROLES = ("assistant", "system", "developer")  # a list with one of these is a conversation, not a further turn


@dataclass(frozen=True)
class Prompt:
    """messages: marked, their media bare; None for a text that no template renders. text: that text, marked.

    media: in the order of the placeholders; whole: the messages are a conversation from its beginning. tools: what the
    model may call, marked, for the template.
    """

    messages: tuple[Message, ...] | None
    text: str
    media: tuple[MediaSource, ...]
    raw: bool = False
    whole: bool = False
    tools: tuple[dict[str, Any], ...] | None = None


def read_prompt(
    prompt: str | list[dict[str, Any]],
    images: Any,
    video: Any,
    *,
    settings: ProcessorSettings,
    control: ControlTokens,
    has_template: bool,
    video_fps: float | None = None,
    system: str | None = None,
    raw: bool = False,
    parse_special: bool = False,
    tools: Sequence[dict[str, Any]] | None = None,
) -> Prompt:
    """A prompt from the arguments of `Processor.encode`; InputError when it is empty, no text or no messages."""
    media = [MediaSource("image", image) for image in listed(images)]
    media += [] if video is None else [MediaSource("video", video, video_fps)]
    mark: Marker = _checked if parse_special or raw else control.mark_parts
    if tools is not None and isinstance(prompt, str):
        raise InputError("tools", got="a prompt that is a text", expected="messages")
    if isinstance(prompt, str):
        return _read_text(prompt, media, settings, mark, has_template, system, raw)
    if raw:
        raise InputError("prompt", got=type(prompt).__name__, expected="a text", fix="leave out raw=True")
    messages = chat.check_messages(prompt)
    filled = _filled(messages, media, video_fps)
    if not filled and not chat.has_text(messages):
        raise InputError("the prompt is empty", expected="a text, an image or a video")
    whole = any(message["role"] in WHOLE_ROLES for message in messages)
    if system is not None and any(message["role"] == "system" for message in messages):
        raise InputError("two system prompts", got="system=... and a system message", expected="one of them")
    marked = [marked_message(message, mark) for message in messages]
    shown = None if tools is None else tuple(_marked_json(dict(tool), mark) for tool in tools)
    return Prompt((*_system(system, mark), *marked), "", tuple(filled), whole=whole, tools=shown)


def _read_text(
    prompt: str,
    media: list[MediaSource],
    settings: ProcessorSettings,
    mark: Marker,
    has_template: bool,
    system: str | None,
    raw: bool,
) -> Prompt:
    if not prompt.strip() and not media:
        raise InputError("the prompt is empty", expected="a text, an image or a video")
    counts = {kind: sum(item.kind == kind for item in media) for kind in KINDS}
    if has_template and not raw:
        text_only = get_family(settings.family).text_only
        message = chat.user_message(mark([prompt])[0], counts["image"], counts["video"], text_only)
        return Prompt((*_system(system, mark), message), "", tuple(media))
    if system is not None:
        raise InputError(
            "a system prompt",
            got="raw=True" if raw else "a model without a chat template",
            expected="a model with a chat template",
            fix="put it into the prompt",
        )
    text = mark([prompt])[0]
    if not raw and not get_family(settings.family).text_only:
        family, tokens = settings.family, settings.tokens
        text = "".join(bare_placeholder(family, kind, tokens) * n for kind, n in counts.items() if n) + text
    return Prompt(None, text, tuple(media), raw=raw)


def _checked(texts: Sequence[str]) -> list[str]:
    for text in texts:
        check_text(text)
    return list(texts)


def _system(system: str | None, mark: Marker) -> list[Message]:
    if system is None:
        return []
    if not isinstance(system, str) or not system.strip():
        raise InputError("the system prompt is empty", got=repr(system)[:40], expected="a text")
    return [{"role": "system", "content": mark([system])[0]}]


def marked_message(message: Message, mark: Marker) -> Message:
    """A message with every text in it marked, its media as bare placeholders."""
    marked = {key: _marked_field(key, value, mark) for key, value in message.items()}
    parts = message.get("content")
    if isinstance(parts, list):  # a template may write them side by side
        texts = iter(mark([part["text"] if part["type"] == "text" else "" for part in parts]))
        marked["content"] = [
            {**part, "text": text} if part["type"] == "text" else part
            for part, text in zip(marked["content"], texts, strict=True)
        ]
    return marked


def _marked_field(key: str, value: Any, mark: Marker) -> Any:
    if key == "role":
        return value
    if key == "content" and isinstance(value, list):
        return [_marked_part(part, mark) for part in value]
    return _marked_json(value, mark)


def _marked_part(part: dict[str, Any], mark: Marker) -> dict[str, Any]:
    """A part of a message with its texts marked, its medium as a bare placeholder."""
    kind = part["type"]
    bare = {key: f"<{kind}>" for key in SOURCE_KEYS if key in part} if kind in KINDS else {}
    return {key: bare.get(key, value if key == "type" else _marked_json(value, mark)) for key, value in part.items()}


def _marked_json(value: Any, mark: Marker) -> Any:
    """JSON with every text in it marked, names of fields included: a template may print it whole."""
    if isinstance(value, str):
        return mark([value])[0]
    if isinstance(value, dict):
        return {_marked_json(key, mark): _marked_json(item, mark) for key, item in value.items()}
    return [_marked_json(item, mark) for item in value] if isinstance(value, list | tuple) else value


def _filled(messages: Sequence[Message], media: Sequence[MediaSource], fps: float | None) -> list[MediaSource]:
    """Media of the messages' parts: their own, and for bare placeholders those given beside the messages, in order."""
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    in_parts = [medium for part in parts if (medium := media_of_part(part)) is not None]
    for kind in KINDS:
        bare, beside = (
            sum(item.kind == kind and (items is media or item.source is None) for item in items)
            for items in (in_parts, media)
        )
        if bare != beside:
            raise InputError(
                f"{kind} parts of the messages do not match the {kind}s given",
                got=f"{bare} parts without a file and {beside} {kind}s",
                fix=f"give one {kind} per part",
            )
    rest = {kind: iter([item for item in media if item.kind == kind]) for kind in KINDS}
    filled = [
        item if item.source is not None else replace(item, source=next(rest[item.kind]).source) for item in in_parts
    ]
    return [
        replace(item, fps=fps) if item.kind == "video" and item.fps is None and fps is not None else item
        for item in filled
    ]
