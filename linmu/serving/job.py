"""A request inside the engine: its tokens, its ticket, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from linmu.processing import ModelInputs
from linmu.runtimes.answer import Clock
from linmu.runtimes.answering import Answering, AnswerSettings
from linmu.runtimes.base import RunnerState
from linmu.runtimes.constraints import Constraint
from linmu.runtimes.sampling import SEEDS
from linmu.serving.reading import PromptReading
from linmu.serving.request import Event, Request, Usage
from linmu.serving.ticket import Ticket


@dataclass(eq=False)
class Job:
    """A request that was accepted.

    inputs: its prompt, ready to be read; settings: of each answer; clock: since it was submitted; constraints: one for
    each answer, or none. reading, state: while its prompt is read; open_answers: those that go on.
    """

    request: Request
    inputs: ModelInputs
    settings: AnswerSettings
    clock: Clock
    ticket: Ticket
    constraints: Sequence[Constraint] = ()
    reading: PromptReading | None = None
    state: RunnerState | None = None
    open_answers: int = 0
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0))

    @property
    def places(self) -> int:
        """Rows that it takes."""
        return self.request.n

    def answer_settings(self, index: int) -> AnswerSettings:
        """Settings of answer `index`: each has a seed and a constraint of its own."""
        settings, seed = self.settings, self.settings.sampling.seed
        if self.constraints:
            settings = replace(settings, constraint=self.constraints[index])
        if seed is None or not index:
            return settings
        wrapped = (seed + index + SEEDS) % (2 * SEEDS) - SEEDS
        return replace(settings, sampling=replace(settings.sampling, seed=wrapped))

    def tell(self, decoding: Decoding, logits: np.ndarray) -> bool:
        """Push logits into one of its answers and write the event -> whether this answer goes on."""
        piece = decoding.answer.push(logits) if self.settings.limit else decoding.answer.empty()
        used = self.usage
        count = used.completion_tokens + (piece.token_id is not None)
        self.usage = Usage(used.prompt_tokens, used.cached_tokens, count)
        goes_on = piece.finish_reason is None
        self.open_answers -= not goes_on
        self.ticket.put(Event(decoding.index, piece, self.usage if not self.open_answers else None))
        if not self.open_answers:
            self.ticket.finish()
        return goes_on


@dataclass(eq=False)
class Decoding:
    """One answer with a row of the batch; position, past_length: of its next step."""

    job: Job
    index: int
    answer: Answering
    position: int
    past_length: int
