"""What a session remembers of its conversation, and what a turn adds to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from linmu.processing import ModelInputs
from linmu.processing.chat import Message
from linmu.processing.sources import MediaSource

KEPT_MEDIA_BYTES = 64 << 20  # of pictures given as arrays, bytes or Pillow images, kept to be read again


@dataclass(frozen=True)
class OpenEnd:
    """The end of a state that has read frames of a clip and no question: the user's turn goes on.

    tail: marked text that closes the clip; reached: the rotary position that tokens behind the question have at least.
    """

    tail: str
    reached: int = 0


@dataclass(frozen=True)
class Conversation:
    """What a state has read, up to its last answer.

    messages: marked, with bare media; None: text without a template. text: the marked text of everything read before
    the answer. tail: the last token ids before the answer. media: pictures and videos in order, None where they are
    not kept. open_end: set where the last message is a clip whose question is still to come; `text` ends with its
    placeholder then. The answer itself is `SessionState.answer`.
    """

    messages: tuple[Message, ...] | None
    text: str
    tail: tuple[int, ...] = ()
    media: tuple[MediaSource | None, ...] = ()
    open_end: OpenEnd | None = None

    def to_json(self) -> dict[str, Any]:
        """What a state file holds: no pictures."""
        messages = None if self.messages is None else list(self.messages)
        data = {"messages": messages, "text": self.text, "tail": list(self.tail), "media": len(self.media)}
        return data if self.open_end is None else {**data, "open_end": asdict(self.open_end)}

    @classmethod
    def from_json(cls, data: Any) -> Conversation:
        """Read `to_json`'s form; ValueError on anything else."""
        if not isinstance(data, Mapping) or not {"messages", "text", "tail", "media"} <= set(data):
            raise ValueError("not a conversation")
        messages, text, tail, media = (data[name] for name in ("messages", "text", "tail", "media"))
        if messages is not None and not (isinstance(messages, list) and all(map(_is_message, messages))):
            raise ValueError("messages of a conversation")
        if not isinstance(text, str) or type(media) is not int or not 0 <= media <= len(text):
            raise ValueError("text or media of a conversation")
        if not isinstance(tail, list) or not all(type(token) is int and token >= 0 for token in tail):
            raise ValueError("token ids of a conversation")
        open_end = _open_end(data.get("open_end"), messages, tail)
        return cls(None if messages is None else tuple(messages), text, tuple(tail), (None,) * media, open_end)


@dataclass(frozen=True)
class Turn(ModelInputs):
    """A prompt ready to be read at one moment of a session.

    conversation: what the state will have read then; after: (tokens, pending) of the state it was made for; restart:
    the state is emptied first; keeps_pending: the last generated token is fed before it; notice: what the user should
    know; reached: the rotary position that the next token has at least.
    """

    conversation: Conversation | None = None
    after: tuple[int, tuple[int, ...]] = (0, ())
    restart: bool = False
    keeps_pending: bool = False
    notice: str | None = None
    reached: int = 0


@dataclass(frozen=True)
class Past:
    """A session's state as the next turn sees it.

    answer: every id since the last prompt, the unfed one (`pending`) included; answer_text: its text where a stop
    string cut it.
    """

    tokens: int
    answer: tuple[int, ...]
    pending: tuple[int, ...]
    conversation: Conversation | None
    answer_text: str | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing has been read."""
        return not self.tokens and not self.pending


def kept(media: Sequence[MediaSource | None]) -> tuple[MediaSource | None, ...]:
    """Media to be read again if need be: the newest ones within KEPT_MEDIA_BYTES, copied where a caller may change."""
    left, newest_first = KEPT_MEDIA_BYTES, []
    for item in reversed(media):
        size = 0 if item is None else _bytes_of(item.source)
        left -= size
        newest_first.append(None if item is None or left < 0 else _copied(item))
    return tuple(reversed(newest_first))


def _bytes_of(source: Any) -> int:
    if isinstance(source, np.ndarray):
        return source.nbytes
    if isinstance(source, Image.Image):
        return source.width * source.height * len(source.getbands())
    return len(source) if isinstance(source, str | bytes | bytearray | memoryview) else 0


def _copied(item: MediaSource) -> MediaSource:
    source = item.source
    if item.kept:
        return item
    if isinstance(source, np.ndarray | Image.Image):
        source = source.copy()
    elif isinstance(source, bytearray | memoryview):
        source = bytes(source)
    return replace(item, source=source, kept=True)


def _open_end(value: Any, messages: Any, tail: list[int]) -> OpenEnd | None:
    """Read `to_json`'s form of an OpenEnd."""
    if value is None:
        return None
    tail_text, reached = (value.get("tail"), value.get("reached")) if isinstance(value, Mapping) else (None, None)
    asked = messages[-1].get("content") if messages else None
    if not isinstance(tail_text, str) or type(reached) is not int or reached < 0 or not isinstance(asked, list):
        raise ValueError("the open end of a conversation")
    if not tail:
        raise ValueError("token ids of a conversation")
    return OpenEnd(tail_text, reached)


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    content = value.get("content")
    if isinstance(content, list):
        return all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content)
    return content is None or isinstance(content, str)
