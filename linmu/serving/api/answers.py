"""What OpenAI's clients read: events of a request as one object, or as chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from linmu.errors import LinmuError
from linmu.runtimes.answer import Piece
from linmu.serving.api.errors import of_linmu
from linmu.serving.api.taken import Taken
from linmu.serving.request import Usage


@dataclass
class Answer:
    """One answer as far as it came."""

    pieces: list[Piece] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its text."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, None while it goes on."""
        return self.pieces[-1].finish_reason if self.pieces else None


class Form(Protocol):
    """How one of the two paths writes its answers."""

    object: str
    chunk_object: str
    prefix: str

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """A whole answer."""

    def first(self, index: int) -> dict[str, Any] | None:
        """What a stream begins an answer with."""

    def delta(self, index: int, piece: Piece, before: Answer) -> dict[str, Any] | None:
        """What a piece adds; None when that is nothing."""


@dataclass(frozen=True)
class Head:
    """What every object of one request says; `names`: id, time in seconds, model, a print of model and backend."""

    form: Form
    names: dict[str, Any]

    @classmethod
    def of(cls, form: Form, model: str, fingerprint: str) -> Head:
        """A new one."""
        names = {"id": form.prefix + uuid.uuid4().hex, "created": int(time.time()), "model": model}
        return cls(form, {**names, "system_fingerprint": fingerprint})


def usage_of(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


async def collected(taken: Taken, head: Head, answers: int) -> dict[str, Any]:
    """The whole response to a request; raises ApiError when the request failed. It is given up if left."""
    parts = [Answer() for _ in range(answers)]
    usage = Usage(0, 0, 0)
    try:
        with taken:
            async for event in taken.ticket:
                parts[event.index].pieces.append(event.piece)
                usage = event.usage or usage
    except LinmuError as error:
        taken.scratch.hide(error)
        raise of_linmu(error) from error
    choices = [head.form.choice(index, answer) for index, answer in enumerate(parts)]
    return {**head.names, "object": head.form.object, "choices": choices, "usage": usage_of(usage)}


async def streamed(taken: Taken, head: Head, answers: int, with_usage: bool) -> AsyncIterator[str]:
    """The data lines of a stream; a failure is one of them. It is given up if left."""
    parts = [Answer() for _ in range(answers)]
    rest: dict[str, Any] = {"usage": None} if with_usage else {}
    chunk = {**head.names, "object": head.form.chunk_object}
    usage = Usage(0, 0, 0)
    with taken:
        for index in range(answers):
            if (choice := head.form.first(index)) is not None:
                yield _line({**chunk, "choices": [choice], **rest})
        try:
            async for event in taken.ticket:
                choice = head.form.delta(event.index, event.piece, parts[event.index])
                parts[event.index].pieces.append(event.piece)
                usage = event.usage or usage
                if choice is not None:
                    yield _line({**chunk, "choices": [choice], **rest})
        except LinmuError as error:
            taken.scratch.hide(error)
            yield _line(of_linmu(error).body())
            return
    if with_usage:
        yield _line({**chunk, "choices": [], "usage": usage_of(usage)})
    yield "[DONE]"


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
