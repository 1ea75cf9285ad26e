"""The one protocol of all backends: a runner owns graphs and weights, the caller owns the state.

Shapes: S tokens of one sequence (batch 1), D hidden size, V vocabulary, P rotary axes (1, or 3 for M-RoPE).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from linmu.specs import StateSpec

TILES_AT_ONCE = 4  # of one vision call


@dataclass(frozen=True)
class VisionFeatures:
    """What the vision graph gives for one call: embeddings [N, D], deepstack [n, N, D] (Qwen3-VL) or None."""

    embeddings: np.ndarray
    deepstack: np.ndarray | None = None


@dataclass(frozen=True)
class PromptPiece:
    """Inputs of one prefill call.

    inputs_embeds [1,S,D] float32; position_ids [P,S] int64; layout: tensors of LAYOUT_SPECS by their full names
    (empty for text-only models); deepstack [n,1,S,D] float32 or None; past_length: tokens seen before this piece.
    """

    inputs_embeds: np.ndarray
    position_ids: np.ndarray
    layout: dict[str, np.ndarray]
    deepstack: np.ndarray | None
    past_length: int


class RunnerState(Protocol):
    """One sequence's recurrent state, held where the backend wants it."""

    @property
    def nbytes(self) -> int:
        """Bytes of the state itself (not of spare buffers)."""

    def read(self) -> dict[str, np.ndarray]:
        """Copies of all tensors by `past.*` name, in the graph's axis order."""

    def write(self, tensors: dict[str, np.ndarray]) -> None:
        """Overwrite all tensors (same names, shapes and dtypes as `read`)."""

    def zero(self) -> None:
        """Back to the initial state."""

    def mark(self) -> Any:
        """What `back_to` takes: the state of this moment, without a copy, until a second run overwrites it."""

    def back_to(self, mark: Any) -> None:
        """Undo what was done since `mark`: one run at most, finished, failed or interrupted."""


class Runner(Protocol):
    """Runs a bundle's graphs; a context manager.

    max_piece_tokens: of a piece that a session may cut from a prompt, None for no limit of the runner's own. A span
    that is longer stays whole, and `prefill` may refuse it.
    """

    backend: str
    state_specs: tuple[StateSpec, ...]

    @property
    def max_piece_tokens(self) -> int | None:
        """See the class."""

    def new_state(self) -> RunnerState:
        """A zero state for one sequence."""

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """Token embeddings: [S] int64 -> [S, D] float32."""

    def encode(self, call: dict[str, np.ndarray]) -> VisionFeatures:
        """The vision graph on one call of `ModelInputs.vision_calls`."""

    def prefill(self, piece: PromptPiece, state: RunnerState) -> np.ndarray:
        """Run a piece of a prompt, updating the state in place -> logits [V] float32 of its last token."""

    def step(self, token: int, position: int, past_length: int, state: RunnerState) -> np.ndarray:
        """One decode step at rotary position `position`, updating the state -> logits [V] float32.

        The array may be overwritten by the next step: copy it to keep it.
        """

    def close(self) -> None:
        """Free graphs and weights."""

    def __enter__(self) -> Runner: ...

    def __exit__(self, *_: object) -> None: ...
