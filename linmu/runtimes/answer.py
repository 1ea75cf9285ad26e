"""What a session gives for a prompt: pieces of an answer, or the whole of it, with their timings."""

from __future__ import annotations

import time
from dataclasses import dataclass

from linmu.runtimes.sampling import Choice


@dataclass(frozen=True)
class Piece:
    """What one generated token adds to an answer; `str(piece)` is its text.

    text: what can be shown now, "" where a character or a stop string may still be incomplete; token_id: None in the
    one piece of an answer without tokens; finish_reason: "stop" or "length" in the last piece, None before; timings:
    up to here, by name in ms and tokens/s; prompt_tokens: of what this prompt added; notice: as in Generation;
    logprobs: the token's, where `Sampling.logprobs` asks for them.
    """

    text: str
    token_id: int | None
    finish_reason: str | None
    timings: dict[str, float]
    prompt_tokens: int
    notice: str | None = None
    logprobs: Choice | None = None

    def __str__(self) -> str:
        """The text."""
        return self.text


@dataclass(frozen=True)
class Generation:
    """An answer: its text, its token ids (end token included), timings by name in ms and tokens/s, and why it ended.

    `notice` says what a user should know (a prompt longer than the teacher's positions), or is None; `logprobs` has one
    Choice a token where `Sampling.logprobs` asks for them, and is () otherwise.
    """

    text: str
    token_ids: tuple[int, ...]
    timings: dict[str, float]
    finish_reason: str
    prompt_tokens: int
    notice: str | None = None
    logprobs: tuple[Choice, ...] = ()


@dataclass
class Clock:
    """When an answer began, when its first token was chosen, and how many tokens there are."""

    start: float
    preprocess_ms: float = 0.0
    first: float | None = None
    tokens: int = 0

    def count(self) -> None:
        """A token was chosen."""
        self.tokens += 1
        self.first = self.first or time.perf_counter()

    def timings(self) -> dict[str, float]:
        """Up to now, by name in ms and tokens/s."""
        now = time.perf_counter()
        first = self.first or now
        decode_ms = (now - first) * 1e3
        rate = max(self.tokens - 1, 0) / max(decode_ms / 1e3, 1e-9)
        ttft_ms = (first - self.start) * 1e3
        return {
            "preprocess_ms": self.preprocess_ms,
            "ttft_ms": ttft_ms,
            "decode_ms": decode_ms,
            "tokens_per_s": rate,
        }
