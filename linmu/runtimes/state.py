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
from linmu.specs import StateSpec


@dataclass(frozen=True)
class StateSnapshot:
    """A copy of a session's state in memory; `SessionState.restore` puts it back."""

    tensors: dict[str, np.ndarray]
    position: int
    tokens: int
    pending: tuple[int, ...]
    answer: tuple[int, ...] = ()
    conversation: Conversation | None = None
    answer_text: str | None = None


BEGINNING = StateSnapshot({}, 0, 0, ())  # without tensors: zeros, which need no copy


class SessionState:
    """What a conversation has become: its tensors are constant in size, whatever they have seen.

    position: rotary position of the next token; tokens: tokens seen; pending: a generated token not yet fed; answer:
    tokens fed since the last prompt; conversation: what was read before them, None where it is not known (token ids
    given by hand, a file without it); answer_text: the last answer where a stop string cut it.
    """

    def __init__(self, runner: Runner, bundle: Bundle, guard: Guard | None = None):
        self._bundle, self._guard = bundle, guard or Guard()
        self.handle = runner.new_state()
        self._due: StateSnapshot | None = None  # what the state is to be, while it is being written
        self._kept = False  # whether somebody further out has a copy to go back to
        self._set_counters(BEGINNING)

    def _set_counters(self, snapshot: StateSnapshot) -> None:
        self.position, self.tokens = snapshot.position, snapshot.tokens
        self.pending: tuple[int, ...] = snapshot.pending
        self.answer: list[int] = list(snapshot.answer)
        self.conversation: Conversation | None = snapshot.conversation
        self.answer_text: str | None = snapshot.answer_text

    @property
    def nbytes(self) -> int:
        """Bytes of all state tensors."""
        return self.handle.nbytes

    @property
    def past(self) -> Past:
        """What the next turn goes on from."""
        self._settle()
        return Past(self.tokens, (*self.answer, *self.pending), self.pending, self.conversation, self.answer_text)

    def read_prompt(self, tokens: int, position: int, conversation: Conversation | None) -> None:
        """Count a prompt that was read into the tensors."""
        self.tokens, self.position, self.conversation = self.tokens + tokens, position, conversation
        self.pending, self.answer_text = (), None
        self.answer.clear()

    @contextmanager
    def feeding(self, token: int) -> Iterator[None]:
        """Count a token that one run inside feeds; whatever is raised leaves the state before it.

        Nothing is copied: a run writes beside what it reads.
        """
        self._settle()
        mark, counters, count = self.handle.mark(), (self.tokens, self.position, self.pending), len(self.answer)
        done = False
        try:
            yield
            self.tokens, self.position, self.pending = self.tokens + 1, self.position + 1, ()
            self.answer.append(token)
            done = True
        finally:
            if not done:
                self.tokens, self.position, self.pending = counters
                del self.answer[count:]
                self.handle.back_to(mark)

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Whatever is raised inside leaves the state as it was; one copy serves all calls within this one."""
        self._settle()
        if self._kept:
            yield
            return
        before = BEGINNING if self.past.empty else self._copy()
        done = False
        try:
            self._kept = True
            yield
            done = True
        finally:
            self._kept = False
            if not done:
                self._restore(before)

    def reset(self) -> None:
        """Back to the beginning of a conversation."""
        with self._guard.call():
            self._restore(BEGINNING)

    def copy(self) -> StateSnapshot:
        """A copy in memory, to go back to with `restore`."""
        with self._guard.call():
            return self._copy()

    def _copy(self) -> StateSnapshot:
        self._settle()
        return StateSnapshot(
            self.handle.read(),
            self.position,
            self.tokens,
            self.pending,
            tuple(self.answer),
            self.conversation,
            self.answer_text,
        )

    def restore(self, snapshot: StateSnapshot) -> None:
        """Put a copy back; raises StateError, with the state as it was, for one of another model."""
        with self._guard.call():
            self._check(snapshot)
            with self.all_or_nothing():
                self._restore(snapshot)

    def _check(self, snapshot: StateSnapshot) -> None:
        """Raise StateError unless the tensors are those of this model's state."""
        for spec in self._single_specs():
            array = snapshot.tensors.get(spec.name)
            kind = None if array is None else (array.dtype.name, array.shape)
            if kind != (spec.dtype, spec.shape):
                raise StateError(
                    f"a copy of another model's state: {spec.name}", got=kind, expected=(spec.dtype, spec.shape)
                )

    def _single_specs(self) -> list[StateSpec]:
        return [replace(spec, shape=(1, *spec.shape[1:])) for spec in self._bundle.manifest.state]

    def _restore(self, snapshot: StateSnapshot) -> None:
        self._due = snapshot
        self._settle()

    def _settle(self) -> None:
        """Finish what an interrupt left half-written, before anything reads it."""
        if (due := self._due) is None:
            return
        self._set_counters(due)
        if due.tensors:
            self.handle.write(due.tensors)
        else:
            self.handle.zero()
        self._due = None

    def save(self, path: str | Path) -> None:
        """Write a state file (safetensors) that any backend of the same model loads."""
        with self._guard.call():
            self._settle()
            position: dict[str, Any] = {"position": self.position, "tokens": self.tokens, "pending": list(self.pending)}
            if (talk := self.conversation) is not None:
                position["conversation"] = {**talk.to_json(), "answer": list(self.answer), "said": self.answer_text}
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
            tensors, values = load_state(Path(path), self._single_specs(), self._bundle.model_hash)
            loaded = self._snapshot(path, tensors, values)
            with self.all_or_nothing():
                self._restore(loaded)

    def _snapshot(self, path: str | Path, tensors: dict[str, np.ndarray], values: dict[str, Any]) -> StateSnapshot:
        vocabulary = self._bundle.manifest.model.vocab_size
        try:
            stored = StateSnapshot(
                tensors, values["position"], values["tokens"], _ids(values.get("pending", []), vocabulary)
            )
            talk = values.get("conversation")
            if talk is None:
                return stored
            answer_text = talk.get("said") if isinstance(talk, dict) else None
            if not (answer_text is None or isinstance(answer_text, str)):
                raise ValueError("the last answer")
            return replace(
                stored,
                conversation=Conversation.from_json(talk),
                answer=_ids(talk.get("answer"), vocabulary),
                answer_text=answer_text,
            )
        except ValueError as error:
            raise StateError(f"{path}: metadata are damaged", got=error, fix="save the state again") from error


def _ids(value: Any, vocabulary: int) -> tuple[int, ...]:
    """Token ids of a file's metadata."""
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token < vocabulary for token in value):
        raise ValueError(f"token ids {str(value)[:40]}")
    return tuple(value)
