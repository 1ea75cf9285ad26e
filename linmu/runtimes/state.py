"""The state of a session: recurrent tensors, the position counter, and the token that is still to be fed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from linmu.bundle import Bundle
from linmu.errors import StateError
from linmu.runtimes.base import Runner
from linmu.runtimes.state_file import load_state, save_state


@dataclass(frozen=True)
class StateSnapshot:
    """A copy of a session's state in memory; `SessionState.restore` puts it back."""

    tensors: dict[str, np.ndarray]
    position: int
    tokens: int
    pending: tuple[int, ...]


class SessionState:
    """What a conversation has become: constant in size, whatever it has seen.

    position: rotary position of the next token; tokens: tokens seen; pending: a generated token not yet fed.
    """

    def __init__(self, runner: Runner, bundle: Bundle):
        self._bundle = bundle
        self.handle = runner.new_state()
        self.position, self.tokens = 0, 0
        self.pending: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all state tensors."""
        return self.handle.nbytes

    def advance(self, tokens: int, position: int) -> None:
        """Count tokens that a run has read into the tensors."""
        self.tokens, self.position = self.tokens + tokens, position

    def ended_with(self, ids: set[int]) -> bool:
        """Whether the token that is still to be fed is one of `ids`."""
        return bool(self.pending) and self.pending[-1] in ids

    def reset(self) -> None:
        """Back to the beginning of a conversation."""
        self.handle.zero()
        self.position, self.tokens, self.pending = 0, 0, ()

    def copy(self) -> StateSnapshot:
        """A copy in memory, to go back to with `restore`."""
        return StateSnapshot(self.handle.read(), self.position, self.tokens, self.pending)

    def restore(self, snapshot: StateSnapshot) -> None:
        """Put a copy back."""
        self.handle.write(snapshot.tensors)
        self.position, self.tokens = snapshot.position, snapshot.tokens
        self.pending = snapshot.pending

    def save(self, path: str | Path) -> None:
        """Write a state file (safetensors) that any backend of the same model loads."""
        position = {"position": self.position, "tokens": self.tokens, "pending": list(self.pending)}
        save_state(
            Path(path), self.handle.read(), specs=list(self._bundle.manifest.state),
            model_hash=self._bundle.model_hash, position=position,
        )  # fmt: skip

    def load(self, path: str | Path) -> None:
        """Read a state file; raises StateError when it is damaged or of another model (this state stays as it is)."""
        manifest = self._bundle.manifest
        single = [replace(spec, shape=(1, *spec.shape[1:])) for spec in manifest.state]
        tensors, position = load_state(Path(path), single, self._bundle.model_hash)
        pending = position.get("pending", [])
        vocab = manifest.model.vocab_size
        if not isinstance(pending, list) or not all(type(token) is int and 0 <= token < vocab for token in pending):
            raise StateError(f"{path}: pending", got=f"{pending!r:.60}", expected=f"token ids below {vocab}")
        self.handle.write(tensors)
        self.position, self.tokens, self.pending = position["position"], position["tokens"], tuple(pending)
