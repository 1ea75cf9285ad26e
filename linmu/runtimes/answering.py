"""One answer between logits and text: no runner, no state; whoever owns those feeds the tokens that are chosen here."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from linmu.processing import Processor
from linmu.runtimes.answer import Clock, Piece
from linmu.runtimes.sampling import Sampling
from linmu.runtimes.stops import StopFilter


@dataclass(frozen=True)
class AnswerSettings:
    """What is asked of an answer: at most `limit` tokens, how they are chosen, and texts (`stops`) that end it."""

    limit: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()


class Answering:
    """Chooses the tokens of one answer and gives their text; a `finish_reason` in a piece ends it.

    prompt_ids: [S] int64, what this prompt added; clock: begun when the prompt came; notice: as in Piece. `token` is the
    one chosen last, which is fed to get the next logits.
    """

    token: int

    def __init__(
        self,
        processor: Processor,
        settings: AnswerSettings,
        prompt_ids: np.ndarray,
        clock: Clock,
        notice: str | None = None,
    ):
        self._settings, self._clock = settings, clock
        self._prompt_tokens, self._notice = len(prompt_ids), notice
        self._ends = processor.eos_token_ids
        self._decoder, self._stops = processor.stream_decoder(), StopFilter(settings.stops)
        self._generator = settings.sampling.generator()

    @property
    def cut_text(self) -> str | None:
        """The whole text of an answer that a stop string ended, None of any other."""
        return self._stops.text if self._stops.complete else None

    def empty(self) -> Piece:
        """The one piece of an answer that is to have no tokens (`limit` 0)."""
        return self._piece("", None, "length")

    def push(self, logits: np.ndarray) -> Piece:
        """Choose a token from logits [V] -> what it adds; raises InputError for logits that are not finite."""
        self.token = token = self._settings.sampling.choose(logits, self._generator)
        self._clock.count()
        ended = token in self._ends
        text = "" if ended else self._stops.push(self._decoder.push(token))
        stopped = ended or self._stops.complete
        last = stopped or self._clock.tokens == self._settings.limit
        if last and not self._stops.complete:
            text += self._stops.push(self._decoder.flush()) + self._stops.flush()
            stopped = stopped or self._stops.complete
        return self._piece(text, token, ("stop" if stopped else "length") if last else None)

    def _piece(self, text: str, token: int | None, reason: str | None) -> Piece:
        return Piece(text, token, reason, self._clock.timings(), self._prompt_tokens, self._notice)
