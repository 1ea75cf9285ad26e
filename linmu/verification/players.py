"""Players: whatever reads a prompt and then takes token after token, giving logits and all states each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from linmu.formats.manifest import Manifest
from linmu.formats.state_precision import canonical, from_canonical
from linmu.processing import ModelInputs
from linmu.runtimes.base import PromptPiece, Runner
from linmu.runtimes.prompt import MAX_PIECE_TOKENS, place_prompt, prompt_pieces
from linmu.runtimes.session import Session
from linmu.verification.hidden import WHOLE

PIECE_TOKENS = 16  # pieces of a session under test: cut wherever a prompt may be cut


class Player(Protocol):
    """One stage of the way from the student to the device; `name` is what reports call it."""

    name: str

    def start(self) -> np.ndarray:
        """Read the prompt -> logits [V] of its last token."""

    def step(self, token: int) -> np.ndarray:
        """Take one token -> logits [V]."""

    def state(self) -> dict[str, np.ndarray]:
        """All states by `past.*` name in canonical axis order."""


class RunnerPlayer:
    """A runner fed with graph-level inputs; `inputs` is the prompt of `start`, cut where the runner takes no more."""

    def __init__(self, runner: Runner, manifest: Manifest, inputs: ModelInputs | None = None, name: str = ""):
        self.runner, self.manifest, self.inputs = runner, manifest, inputs
        self.name = name or f"runner [{runner.backend}]"
        self.handle = runner.new_state()
        self.position, self.tokens = 0, 0

    def start(self) -> np.ndarray:
        """Read `inputs`, vision and embeddings included."""
        assert self.inputs is not None
        placed = place_prompt(self.inputs, self.manifest)
        logits, most = None, None if self.manifest.program else self.runner.max_piece_tokens or WHOLE
        for piece in prompt_pieces(self.inputs, self.runner, self.manifest, placed, 0, most):
            logits = self.prefill(piece, placed.next_position)
        assert logits is not None  # place_prompt refuses empty prompts
        return logits

    def prefill(self, piece: PromptPiece, next_position: int) -> np.ndarray:
        """Read one ready piece."""
        logits = self.runner.prefill(piece, self.handle)
        self.position, self.tokens = next_position, piece.past_length + piece.inputs_embeds.shape[1]
        return logits

    def step(self, token: int) -> np.ndarray:
        """One decode step."""
        logits = self.runner.step(token, self.position, self.tokens, self.handle)
        self.position, self.tokens = self.position + 1, self.tokens + 1
        return logits

    def state(self) -> dict[str, np.ndarray]:
        """All states."""
        return canonical(self.runner.state_specs, self.handle.read())

    def save(self) -> tuple[dict[str, np.ndarray], int, int]:
        """What `restore` goes back to."""
        return self.handle.read(), self.position, self.tokens

    def restore(self, saved: tuple[dict[str, np.ndarray], int, int]) -> None:
        """Go back to a saved moment."""
        tensors, self.position, self.tokens = saved
        self.handle.write(tensors)

    def place(self, state: dict[str, np.ndarray], position: int, tokens: int) -> None:
        """Take canonical states as they are, as if `tokens` tokens had been read."""
        self.restore((from_canonical(self.runner.state_specs, state), position, tokens))


class SessionPlayer:
    """The way a user takes: preprocessing, a prompt cut into many pieces, steps that count positions themselves.

    A state that is not float32 is rounded after every piece: such a prompt is cut only where a session must, as the
    reference's is, or they would not round at the same places.
    """

    def __init__(self, session: Session, prompt: str, images: Sequence[Path], name: str = ""):
        self.session, self.prompt, self.images = session, prompt, list(images)
        exact = session.bundle.manifest.precision.state == "fp32"
        self.piece_tokens = PIECE_TOKENS if exact else MAX_PIECE_TOKENS
        self.name = name or f"session [{session.runner.backend}]"

    def start(self) -> np.ndarray:
        """Encode and read the prompt."""
        self.session.reset()
        return self.session.prefill(self.session.prepare(self.prompt, self.images), self.piece_tokens)

    def step(self, token: int) -> np.ndarray:
        """One decode step."""
        return self.session.step(token)

    def state(self) -> dict[str, np.ndarray]:
        """All states."""
        return canonical(self.session.runner.state_specs, self.session.state.handle.read())
