"""A Runner that runs a backend and then, on the same inputs, the reference that follows what it rounds (torch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from linmu.formats.state_precision import canonical
from linmu.proof.comparison import Comparison, Moment
from linmu.proof.followed import Follower
from linmu.proof.paths import Path
from linmu.reference.eager import StudentRunner
from linmu.runtimes.base import PromptPiece, RunnerState, VisionFeatures
from linmu.step.torch_formats import round_named
from linmu.verification.compare import Meter, logits_error


@dataclass
class MirrorState:
    """One sequence's state in a backend, in the reference and in its twin; `read` gives the backend's."""

    own: RunnerState
    others: tuple[RunnerState, RunnerState]

    @property
    def nbytes(self) -> int:
        """Bytes of the backend's."""
        return self.own.nbytes

    def read(self) -> dict[str, np.ndarray]:
        """Copies of the backend's tensors."""
        return self.own.read()

    def write(self, tensors: dict[str, np.ndarray]) -> None:
        """Overwrite all three: from here on they have the same past."""
        for state in (self.own, *self.others):
            state.write(tensors)

    def zero(self) -> None:
        """All back to zeros."""
        for state in (self.own, *self.others):
            state.zero()

    def mark(self) -> tuple[object, ...]:
        """The marks of all three."""
        return tuple(state.mark() for state in (self.own, *self.others))

    def back_to(self, mark: tuple[object, ...]) -> None:
        """Undo what was done to all three since `mark`."""
        for state, own in zip((self.own, *self.others), mark, strict=True):
            state.back_to(own)


class Mirror:
    """A Runner that runs a path's backend and then, on the same inputs, the reference; it compares every call.

    pair: the reference and its twin, which follow in these calls alone. Step 0 is the prompt, in however many pieces.
    `wanted`: the reference's last logits.
    """

    def __init__(self, path: Path, pair: tuple[StudentRunner, StudentRunner], comparison: Comparison):
        self.path, self.pair, self.comparison, self.runner = path, pair, comparison, path.runner
        self.backend, self.state_specs = path.runner.backend, path.runner.state_specs
        self.max_piece_tokens: int | None = path.runner.max_piece_tokens
        self.meter = Meter()
        self.follower = Follower(self.meter)
        self.wanted = np.zeros(1, np.float32)

    def new_state(self) -> MirrorState:
        """Zero states for one sequence."""
        return MirrorState(self.runner.new_state(), (self.pair[0].new_state(), self.pair[1].new_state()))

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """The backend's token embeddings, compared."""
        rows, wanted = self.runner.embed(input_ids), self.pair[0].embed(input_ids)
        self.meter.add(logits_error(rows, wanted, self.comparison.base, self.follower.step, "embeddings"))
        return rows

    def encode(self, call: dict[str, np.ndarray]) -> VisionFeatures:
        """The backend's features: they have a check of their own, and both go on from them."""
        return self.runner.encode(call)

    def prefill(self, piece: PromptPiece, state: MirrorState) -> np.ndarray:
        """A piece of a prompt -> the backend's logits [V]."""
        return self._call(lambda runner, handle: runner.prefill(piece, handle), state)

    def step(self, token: int, position: int, past_length: int, state: MirrorState) -> np.ndarray:
        """One decode step -> the backend's logits [V]."""
        self.follower.step += 1
        return self._call(lambda runner, handle: runner.step(token, position, past_length, handle), state)

    def _call(self, run: Callable[[Any, Any], np.ndarray], state: MirrorState) -> np.ndarray:
        logits = run(self.runner, state.own).copy()
        self.follower.inputs = self.path.rounded_inputs()
        with self._following():  # the twin's inputs come first
            twin, own = (self._moment(run, index, state) for index in (1, 0))
        self.wanted = own.logits
        self.comparison.widen(own, twin)
        moment = Moment(logits, canonical(self.state_specs, state.own.read()))
        self.comparison.hold(self.meter, moment, own, self.follower.step)
        if self.pair[0].form.state != "fp32":  # neighbours are right, and would move the inputs of the next call
            for handle in state.others:
                handle.write(state.own.read())
        return logits

    def _moment(self, run: Callable[[Any, Any], np.ndarray], index: int, state: MirrorState) -> Moment:
        runner, handle = self.pair[index], state.others[index]
        return Moment(run(runner, handle).copy(), canonical(runner.state_specs, handle.read()))

    @contextmanager
    def _following(self) -> Iterator[None]:
        self.pair[0].ops.rounding, self.pair[1].ops.rounding = self.follower, self.follower.blindly
        try:
            yield
        finally:
            for one in self.pair:
                one.ops.rounding = round_named

    @property
    def note(self) -> str:
        """What was followed, for the report."""
        worst = self.meter.kinds.get("inputs")
        inputs = "" if worst is None else f", inputs within {worst.error:.1e} of their range ({worst.tensor})"
        return f"{self.follower.codes} codes compared, {self.follower.ties} ties followed{inputs}"
