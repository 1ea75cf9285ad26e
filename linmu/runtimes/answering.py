"""One answer between logits and text: no runner, no state; whoever owns those feeds the tokens that are chosen here."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from linmu.processing import Processor
from linmu.runtimes.answer import Clock, Piece
from linmu.runtimes.constraints import Constraint
from linmu.runtimes.sampling import Choice, Sampling
from linmu.runtimes.stops import StopFilter


@dataclass(frozen=True)
class AnswerSettings:
    """What is asked of an answer.

    limit: tokens at most; sampling: how they are chosen; stops: texts that end it; constraint: what it is held to, made
    for this answer alone.
    """

    limit: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    constraint: Constraint | None = None


class Answering:
    """Chooses the tokens of one answer and gives their text; a `finish_reason` in a piece ends it.

    prompt_ids: [S] int64, what this prompt added; clock: begun when the prompt came; notice: as in Piece. `token`
    is the one chosen last, which is fed to get the next logits. Raises InputError for a logit_bias of tokens that
    the model lacks.
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
        if processor.vocabulary is not None:
            settings.sampling.check_vocabulary(processor.vocabulary)
        self._chooser = settings.sampling.chooser(prompt_ids, settings.constraint)

    @property
    def cut_text(self) -> str | None:
        """The whole text of an answer that a stop string ended, None of any other."""
        return self._stops.text if self._stops.complete else None

    def empty(self) -> Piece:
        """The one piece of an answer that is to have no tokens (`limit` 0)."""
        return self._piece("", None, "length")

    def push(self, logits: np.ndarray) -> Piece:
        """Choose a token from logits [V] -> what it adds; raises InputError for logits that are not finite."""
        choice = self._chooser.choose(logits)
        self.token = choice.token
        self._clock.count()
        ended = self.token in self._ends
        text = "" if ended else self._stops.push(self._decoder.push(self.token))
        whole = ended or (self._settings.constraint is not None and self._settings.constraint.complete)
        last = whole or self._stops.complete or self._clock.tokens == self._settings.limit
        if last and not self._stops.complete:
            text += self._stops.push(self._decoder.flush()) + self._stops.flush()
        reason = "stop" if whole or self._stops.complete else "length"
        return self._piece(text, self.token, reason if last else None, choice)

    def _piece(self, text: str, token: int | None, reason: str | None, choice: Choice | None = None) -> Piece:
        told = None if choice is None or choice.logprob is None else choice
        return Piece(text, token, reason, self._clock.timings(), self._prompt_tokens, self._notice, told)
