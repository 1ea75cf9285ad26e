"""Reading a prompt into a state a piece at a time: the one place where kept states come in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from linmu.formats.bundle import Bundle
from linmu.processing import ModelInputs
from linmu.runtimes.base import PromptPiece, Runner, RunnerState
from linmu.runtimes.prompt import place_prompt, prompt_pieces


class PromptReading(Protocol):
    """A prompt that is being read into one state.

    tokens: of the whole prompt; cached_tokens: of these, read before and continued from; next_position: rotary
    position behind the prompt.
    """

    @property
    def tokens(self) -> int:
        """See the class."""

    @property
    def cached_tokens(self) -> int:
        """See the class."""

    @property
    def next_position(self) -> int:
        """See the class."""

    def advance(self) -> np.ndarray | None:
        """Run one prefill call -> logits [V] of the prompt's last token behind the last piece, None before."""


class PromptReader(Protocol):
    """Begins readings; all calls come from the model thread."""

    def begin(self, inputs: ModelInputs, state: RunnerState, keep: bool) -> PromptReading:
        """A prompt from its beginning into `state`, which has anything in it; keep: kept states may be used."""


class PlainReader:
    """Reads every prompt from a zero state."""

    def __init__(self, runner: Runner, bundle: Bundle, piece_tokens: int):
        self.runner, self.bundle = runner, bundle
        limit = runner.max_piece_tokens
        self.piece_tokens = piece_tokens if limit is None else min(piece_tokens, limit)

    def begin(self, inputs: ModelInputs, state: RunnerState, keep: bool) -> PlainReading:
        """See PromptReader; nothing is kept."""
        state.zero()
        return PlainReading(self, inputs, state)


class PlainReading:
    """A prompt read from its beginning; see PromptReading."""

    cached_tokens = 0

    def __init__(self, reader: PlainReader, inputs: ModelInputs, state: RunnerState):
        manifest = reader.bundle.manifest
        placed = place_prompt(inputs, manifest)
        self.tokens, self.next_position = len(inputs.input_ids), placed.next_position
        self._runner, self._state, self._read = reader.runner, state, 0
        self._pieces: Iterator[PromptPiece] = prompt_pieces(
            inputs, reader.runner, manifest, placed, max_tokens=reader.piece_tokens
        )

    def advance(self) -> np.ndarray | None:
        """See PromptReading."""
        piece = next(self._pieces)
        logits = self._runner.prefill(piece, self._state)
        self._read += piece.inputs_embeds.shape[1]
        return logits if self._read == self.tokens else None
