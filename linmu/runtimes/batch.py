"""Decode steps of many states of one runner: in one call where the backend can, else one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from linmu.runtimes.base import Runner, RunnerState


class RunnerBatch(Protocol):
    """States that take their decode steps together, a row each; rows are 0..len-1 without holes."""

    @property
    def capacity(self) -> int:
        """Rows there can be."""

    def __len__(self) -> int:
        """Rows in use."""

    def join(self, state: RunnerState) -> int:
        """Copy a state into a new last row -> its number; the state itself stays the caller's."""

    def leave(self, row: int, state: RunnerState | None = None) -> None:
        """Free a row, copying it into `state` where given; the last row then has this number."""

    def step(self, tokens: Sequence[int], positions: Sequence[int], past_lengths: Sequence[int]) -> np.ndarray:
        """One decode step of every row, arguments as in `Runner.step` -> logits [rows, V] float32.

        The array may be overwritten by the next step. An error leaves all rows as they were.
        """


@runtime_checkable
class BatchRunner(Protocol):
    """A runner that can step many states in one call."""

    def new_batch(self, capacity: int) -> RunnerBatch | None:
        """A batch of up to `capacity` rows; None where this bundle's graphs take one sequence."""


def new_batch(runner: Runner, capacity: int) -> RunnerBatch:
    """A batch of the runner's own, or one whose rows take turns."""
    batch = runner.new_batch(capacity) if isinstance(runner, BatchRunner) else None
    return batch if batch is not None else TurnsBatch(runner, capacity)


class TurnsBatch:
    """Rows that are stepped one after the other, for backends without batches."""

    def __init__(self, runner: Runner, capacity: int):
        self._runner, self.capacity = runner, capacity
        self._rows: list[RunnerState] = []
        self._free: list[RunnerState] = []

    def __len__(self) -> int:
        """Rows in use."""
        return len(self._rows)

    def join(self, state: RunnerState) -> int:
        """See RunnerBatch."""
        row = self._free.pop() if self._free else self._runner.new_state()
        row.write(state.read())
        self._rows.append(row)
        return len(self._rows) - 1

    def leave(self, row: int, state: RunnerState | None = None) -> None:
        """See RunnerBatch."""
        if state is not None:
            state.write(self._rows[row].read())
        self._free.append(self._rows[row])
        last = self._rows.pop()
        if row < len(self._rows):
            self._rows[row] = last

    def step(self, tokens: Sequence[int], positions: Sequence[int], past_lengths: Sequence[int]) -> np.ndarray:
        """See RunnerBatch."""
        marks = [state.mark() for state in self._rows]
        logits, done = [], False
        try:
            for token, position, past, state in zip(tokens, positions, past_lengths, self._rows, strict=True):
                logits.append(self._runner.step(token, position, past, state).copy())
            done = True
        finally:
            if not done:
                for state, mark in zip(self._rows, marks, strict=True):
                    state.back_to(mark)
        return np.stack(logits)
