"""What is asked of an engine, and what comes back: requests, events, limits, and why a request was not taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from linmu.errors import InputError, LinmuError
from linmu.processing import ModelInputs
from linmu.runtimes.answer import Piece
from linmu.runtimes.constraints import Constraint
from linmu.runtimes.sampling import Sampling


class QueueFull(LinmuError):
    """No place to wait in: HTTP 429. `retry_after_s`: when to try again, a guess from how fast requests end."""

    def __init__(self, waiting: int, retry_after_s: float):
        super().__init__("the queue is full", got=f"{waiting} requests waiting", fix="try again later")
        self.retry_after_s = retry_after_s


class EngineClosed(LinmuError):
    """The engine takes no more requests, or ended this one because it closes: HTTP 503."""

    def __init__(self) -> None:
        super().__init__("the server is closing", fix="try again when it is back")


class PromptTooLong(InputError):
    """A prompt of more tokens than the engine's limit: HTTP 413."""


@dataclass(frozen=True)
class Limits:
    """How much an engine takes on.

    max_sessions: answers decoded or read at one time; max_queued: requests that wait for a place; piece_tokens: of a
    piece of a prompt, which bounds how long decoding waits (a longer span stays whole); max_prompt_tokens,
    max_new_tokens: of one request, None: no bound.
    """

    max_sessions: int = 8
    max_queued: int = 32
    piece_tokens: int = 256
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_sessions", 1), ("max_queued", 0), ("piece_tokens", 1)):
            _check_count(name, getattr(self, name), least)
        for name in ("max_prompt_tokens", "max_new_tokens"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name), 1)


@dataclass(frozen=True)
class Request:
    """One request: a prompt as `Processor.encode` takes it, and how it is answered.

    prompt: messages, a text, or ModelInputs that are ready to be read (images, video and options then are not used);
    images, video: decoded already; options: further arguments of `Processor.encode` by name (raw, system, video_fps,
    parse_special, add_generation_prompt). max_new_tokens: None: the bundle's; n: answers to the prompt, which is read
    once; the i-th has the seed `sampling.seed` + i. constraint: makes what an answer is held to, called once for each.
    keep: whether states of its prompt may be looked up and kept.
    """

    prompt: str | list[dict[str, Any]] | ModelInputs
    images: Sequence[Any] = ()
    video: Any = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: str | Sequence[str] | None = None
    max_new_tokens: int | None = None
    n: int = 1
    constraint: Callable[[], Constraint] | None = None
    keep: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_count("n", self.n, 1)
        if self.max_new_tokens is not None:
            _check_count("max_new_tokens", self.max_new_tokens, 0)


@dataclass(frozen=True)
class Usage:
    """Tokens of a request: of its prompt, of these continued from a kept state, and generated in all answers."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Event:
    """A piece of answer `index`; `usage` stands in the last event of a request, None before."""

    index: int
    piece: Piece
    usage: Usage | None = None


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(name, got=repr(value), expected=f"a whole number, at least {least}")
