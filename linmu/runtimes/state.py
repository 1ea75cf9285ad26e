"""The state of a session: recurrent tensors, counters, what they have read, and the token still to be fed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from linmu.errors import StateError
from linmu.formats.bundle import Bundle
from linmu.formats.state_file import load_state, save_state
from linmu.runtimes.base import Runner
from linmu.runtimes.conversation import Conversation, Past
from linmu.runtimes.guard import Guard


@dataclass(frozen=True)
class StateSnapshot:
    """A copy of a session's state in memory; `SessionState.restore` puts it back."""

    tensors: dict[str, np.ndarray]
    position: int
    tokens: int
    pending: tuple[int, ...]
    answer: tuple[int, ...] = ()
    conversation: Conversation | None = None
    said: str | None = None


class SessionState:
    """What a conversation has become: its tensors are constant in size, whatever they have seen.

    position: rotary position of the next token; tokens: tokens seen; pending: a generated token not yet fed; answer:
    tokens fed since the last prompt; conversation: what was read before them, None where it is not known (token ids
    given by hand, a file without it); said: the last answer where a stop string cut it.
    """

    def __init__(self, runner: Runner, bundle: Bundle, guard: Guard | None = None):
        self._bundle, self._guard = bundle, guard or Guard()
        self.handle = runner.new_state()
        self._clear()

    def _clear(self) -> None:
        self.position, self.tokens = 0, 0
        self.pending: tuple[int, ...] = ()
        self.answer: list[int] = []
        self.conversation: Conversation | None = None
        self.said: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all state tensors."""
        return self.handle.nbytes

    @property
    def past(self) -> Past:
        """What the next turn goes on from."""
        return Past(self.tokens, (*self.answer, *self.pending), self.pending, self.conversation, self.said)

    def read_prompt(self, tokens: int, position: int, conversation: Conversation | None) -> None:
        """Count a prompt that was read into the tensors."""
        self.tokens, self.position, self.conversation = self.tokens + tokens, position, conversation
        self.pending, self.said = (), None
        self.answer.clear()

    def read_token(self, token: int) -> None:
        """Count a token that was fed."""
        self.tokens, self.position, self.pending = self.tokens + 1, self.position + 1, ()
        self.answer.append(token)

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Whatever is raised inside leaves the state as it was."""
        before = None if self.past.empty else self._copy()
        done = False
        try:
            yield
            done = True
        finally:
            if not done:
                self._reset() if before is None else self._restore(before)

    def reset(self) -> None:
        """Back to the beginning of a conversation."""
        with self._guard.call():
            self._reset()

    def _reset(self) -> None:
        self.handle.zero()
        self._clear()

    def copy(self) -> StateSnapshot:
        """A copy in memory, to go back to with `restore`."""
        with self._guard.call():
            return self._copy()

    def _copy(self) -> StateSnapshot:
        return StateSnapshot(
            self.handle.read(),
            self.position,
            self.tokens,
            self.pending,
            tuple(self.answer),
            self.conversation,
            self.said,
        )

    def restore(self, snapshot: StateSnapshot) -> None:
        """Put a copy back."""
        with self._guard.call():
            self._restore(snapshot)

    def _restore(self, snapshot: StateSnapshot) -> None:
        self.handle.write(snapshot.tensors)
        self.position, self.tokens, self.pending = snapshot.position, snapshot.tokens, snapshot.pending
        self.answer, self.conversation, self.said = list(snapshot.answer), snapshot.conversation, snapshot.said

    def save(self, path: str | Path) -> None:
        """Write a state file (safetensors) that any backend of the same model loads."""
        with self._guard.call():
            position: dict[str, Any] = {"position": self.position, "tokens": self.tokens, "pending": list(self.pending)}
            if (talk := self.conversation) is not None:
                position["conversation"] = {**talk.to_json(), "answer": list(self.answer), "said": self.said}
            save_state(
                Path(path),
                self.handle.read(),
                specs=list(self._bundle.manifest.state),
                model_hash=self._bundle.model_hash,
                position=position,
            )

    def load(self, path: str | Path) -> None:
        """Read a state file; raises StateError, with the state as it was, when it is damaged or of another model."""
        with self._guard.call():
            single = [replace(spec, shape=(1, *spec.shape[1:])) for spec in self._bundle.manifest.state]
            tensors, values = load_state(Path(path), single, self._bundle.model_hash)
            loaded = self._snapshot(path, tensors, values)
            with self.all_or_nothing():
                self._restore(loaded)

    def _snapshot(self, path: str | Path, tensors: dict[str, np.ndarray], values: dict[str, Any]) -> StateSnapshot:
        vocabulary = self._bundle.manifest.model.vocab_size
        try:
            found = StateSnapshot(
                tensors, values["position"], values["tokens"], _ids(values.get("pending", []), vocabulary)
            )
            talk = values.get("conversation")
            if talk is None:
                return found
            said = talk.get("said") if isinstance(talk, dict) else None
            if not (said is None or isinstance(said, str)):
                raise ValueError("the last answer")
            return replace(
                found, conversation=Conversation.from_json(talk), answer=_ids(talk.get("answer"), vocabulary), said=said
            )
        except ValueError as error:
            raise StateError(f"{path}: metadata are damaged", got=error, fix="save the state again") from error


def _ids(value: Any, vocabulary: int) -> tuple[int, ...]:
    """Token ids of a file's metadata."""
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token < vocabulary for token in value):
        raise ValueError(f"token ids {str(value)[:40]}")
    return tuple(value)
