"""A reference that follows a graph's codes: where rounding is a tie, either side is right; all else must agree (torch).

Two float32 implementations differ in the last bits. Where x / scale lies next to the border of two codes, one gets the
one code and the other its neighbour, a step of 1/127 of the range, and from there on they are different roll-outs.
So a backend runs first and shows the inputs of its rounded products; then the reference runs the same call. Every input
is held to a margin; within it the reference takes the backend's code, beyond it its own. With that, logits and states
of every call are held to the tolerances of float32. States that are kept in float16 are compared in the same way and
then taken over: one float16 neighbour is within the tolerance, two are not.
The margin is widened like those where the reference itself moves (linmu.verification.compare): its twin, which sums in
another order, tells by how much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linmu.errors import BundleError
from linmu.formats.matrix_format import LARGEST, MatrixFormat
from linmu.formats.state_precision import canonical
from linmu.reference.eager import StudentRunner
from linmu.runtimes.base import PromptPiece, Runner, RunnerState, VisionFeatures
from linmu.step.torch_formats import code_scale, input_codes, round_input, round_named
from linmu.verification.compare import (
    NOISE_ROOM,
    TINY,
    Meter,
    Tolerance,
    Worst,
    array_error,
    logits_error,
    logits_noise,
    noise_between,
    states_error,
    top_gap,
)

# Of an input's range (scale times the largest code); an int8 code is 1/127 of it, so these are 0.025 and 0.13 of one.
# Measured between ONNX Runtime and the reference: 1e-6 of the range for text, and up to 9e-5 (0.012 of a code) where
# pictures are read, in front of out_proj: the norm of a head whose values are small enlarges their last bits.
MARGIN, WIDEST_MARGIN = 2e-4, 1e-3
BEYOND = 1.01  # inputs are compared up to a little more than their range: what is cut off has no effect

Seen = dict[str, np.ndarray]


class Follower:
    """The rounding of a reference that follows `given`, a backend's inputs by matrix; compares and counts."""

    def __init__(self, meter: Meter):
        self.meter, self.given, self.step = meter, Seen(), 0
        self.twins = Seen()
        self.noise = 0.0
        self.codes = self.ties = 0

    @property
    def margin(self) -> float:
        """By how much of its range an input may differ."""
        return max(MARGIN, min(NOISE_ROOM * self.noise, WIDEST_MARGIN))

    def __call__(self, weight: str, x: Tensor, format: MatrixFormat, scale: Tensor) -> Tensor:
        """X as its product sees it; raises BundleError where the backend rounds no such input."""
        shown = torch.from_numpy(self._given(weight, x))
        worth = code_scale(x, format, scale)
        unit = (worth * LARGEST[format.input]).clamp(min=TINY)  # a block may be all zeros
        twin = torch.from_numpy(self.twins[weight])
        found, wanted, other = (y.clamp(-BEYOND * unit, BEYOND * unit).numpy() for y in (shown, x, twin))
        noise = float((np.abs(other - wanted) / unit.numpy()).max())
        self.noise = max(self.noise, noise if np.isfinite(noise) else 0.0)
        self.meter.add(array_error(found, wanted, unit.numpy(), f"input of {weight}", self.margin, self.step), "inputs")
        codes, allowed = follow(x, shown, format, scale, self.margin)
        self.codes += codes.numel()
        self.ties += int((allowed & (codes != input_codes(x, format, scale))).sum())
        return torch.where(allowed, codes, input_codes(x, format, scale)) * worth

    def blindly(self, weight: str, x: Tensor, format: MatrixFormat, scale: Tensor) -> Tensor:
        """The same for a twin, which runs first: the backend's codes as they are."""
        self.twins[weight] = x.numpy()
        return round_input(torch.from_numpy(self._given(weight, x)), format, scale)

    def _given(self, weight: str, x: Tensor) -> np.ndarray:
        found = self.given.get(weight)
        if found is None or found.shape != x.shape:
            got = "nothing" if found is None else list(found.shape)
            raise BundleError(f"the rounded input of {weight}", got=got, expected=list(x.shape), fix="export again")
        return found


def follow(
    x: Tensor, shown: Tensor, format: MatrixFormat, scale: Tensor, margin: float = MARGIN
) -> tuple[Tensor, Tensor]:
    """(codes of `shown`, where they are right for x): the code of some value within `margin` of x.

    Within twice of it where the scale is a block's own largest value, which may be off by as much.
    """
    room = margin * LARGEST[format.input] * code_scale(x, format, scale) * (1 if format.static_input else 2)
    low, high = (input_codes(edge, format, scale, x) for edge in (x - room, x + room))
    codes = input_codes(shown, format, scale)
    return codes, (low <= codes) & (codes <= high)


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
    """A Runner that runs a backend and then, on the same inputs, the reference that follows it; compares every call.

    `seen` gives the inputs of the backend's last call. Step 0 is the prompt, in however many pieces. `wanted`: the
    reference's last logits. A context manager: the reference rounds by itself again afterwards.
    """

    def __init__(
        self, runner: Runner, seen: Callable[[], Seen], pair: tuple[StudentRunner, StudentRunner], base: Tolerance
    ):
        self.runner, self.seen, self.pair, self.base = runner, seen, pair, base
        self.backend, self.state_specs = runner.backend, runner.state_specs
        self.meter, self.noise = Meter(), np.zeros(2)
        self.follower = Follower(self.meter)
        self.wanted = np.zeros(0, np.float32)

    def __enter__(self) -> Mirror:
        """Make the reference follow."""
        self.pair[0].ops.rounding, self.pair[1].ops.rounding = self.follower, self.follower.blindly
        return self

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        self.close()

    def close(self) -> None:
        """Let the reference go; the backend is closed by who opened it."""
        for one in self.pair:
            one.ops.rounding = round_named

    def new_state(self) -> MirrorState:
        """Zero states for one sequence."""
        return MirrorState(self.runner.new_state(), (self.pair[0].new_state(), self.pair[1].new_state()))

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """The backend's token embeddings, compared."""
        found = self.runner.embed(input_ids)
        self.meter.add(logits_error(found, self.pair[0].embed(input_ids), self.base, self.follower.step, "embeddings"))
        return found

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
        self.follower.given = self.seen()
        backwards = zip(reversed(self.pair), reversed(state.others), strict=True)  # the twin's inputs come first
        made = [run(one, handle).copy() for one, handle in backwards][::-1]
        self.wanted = made[0]
        found = canonical(self.state_specs, state.own.read())
        wanted, other = (canonical(self.pair[0].state_specs, handle.read()) for handle in state.others)
        # products that are rounded to float16 are those of the head: nothing of them stays in a state
        least = logits_noise(made[0], made[1], self.pair[0].quantum), noise_between(made[0], wanted, made[1], other)[1]
        self.noise = np.maximum(self.noise, least)
        tolerance, step = self.base.widened(self.noise), self.follower.step
        self.meter.add(logits_error(logits, made[0], tolerance, step), "logits")
        states_error(self.meter, found, wanted, tolerance, step)
        if self.pair[0].form.state != "fp32":  # neighbours are right, and would move the inputs of the next call
            for handle in state.others:
                handle.write(state.own.read())
        best, right = int(logits.argmax()), int(made[0].argmax())
        if best != right and top_gap(made[0]) > 2 * tolerance.logits:
            self.meter.add(Worst(np.inf, tolerance.logits, "logits", step, f"most likely token {best}, not {right}"))
        return logits

    @property
    def note(self) -> str:
        """What was followed, for the report."""
        worst = self.meter.kinds.get("inputs")
        told = "" if worst is None else f", inputs within {worst.error:.1e} of their range ({worst.tensor})"
        return f"{self.follower.codes} codes compared, {self.follower.ties} ties followed{told}"
