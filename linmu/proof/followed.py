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

import numpy as np
import torch
from torch import Tensor

from linmu.errors import BundleError
from linmu.formats.matrix_format import LARGEST, MatrixFormat
from linmu.proof.paths import RoundedInputs
from linmu.step.torch_formats import code_scale, input_codes, round_input
from linmu.verification.compare import NOISE_ROOM, TINY, Meter, array_error

# Of an input's range (scale times the largest code); an int8 code is 1/127 of it, so these are 0.025 and 0.13 of one.
# Measured between ONNX Runtime and the reference: 1e-6 of the range for text, and up to 9e-5 (0.012 of a code) where
# pictures are read, in front of out_proj: the norm of a head whose values are small enlarges their last bits.
MARGIN, WIDEST_MARGIN = 2e-4, 1e-3
BEYOND = 1.01  # inputs are compared up to a little more than their range: what is cut off has no effect


class Follower:
    """The rounding of a reference that follows `inputs`, a backend's by matrix; compares and counts."""

    def __init__(self, meter: Meter):
        self.meter, self.step = meter, 0
        self.inputs, self.twins = RoundedInputs(), RoundedInputs()
        self.noise = 0.0
        self.codes = self.ties = 0

    @property
    def margin(self) -> float:
        """By how much of its range an input may differ."""
        return max(MARGIN, min(NOISE_ROOM * self.noise, WIDEST_MARGIN))

    def __call__(self, weight: str, x: Tensor, format: MatrixFormat, scale: Tensor) -> Tensor:
        """X as its product sees it; raises BundleError where the backend rounds no such input."""
        shown = torch.from_numpy(self._input(weight, x))
        worth = code_scale(x, format, scale)
        unit = (worth * LARGEST[format.input]).clamp(min=TINY)  # a block may be all zeros
        twin = torch.from_numpy(self.twins[weight])
        values, wanted, other = (y.clamp(-BEYOND * unit, BEYOND * unit).numpy() for y in (shown, x, twin))
        noise = float((np.abs(other - wanted) / unit.numpy()).max())
        self.noise = max(self.noise, noise if np.isfinite(noise) else 0.0)
        error = array_error(values, wanted, unit.numpy(), f"input of {weight}", self.margin, self.step)
        self.meter.add(error, "inputs")
        own = input_codes(x, format, scale)
        codes, allowed = follow(x, shown, format, scale, self.margin)
        self.codes += codes.numel()
        self.ties += int((allowed & (codes != own)).sum())
        return torch.where(allowed, codes, own) * worth

    def blindly(self, weight: str, x: Tensor, format: MatrixFormat, scale: Tensor) -> Tensor:
        """The same for a twin, which runs first: the backend's codes as they are."""
        self.twins[weight] = x.numpy()
        return round_input(torch.from_numpy(self._input(weight, x)), format, scale)

    def _input(self, weight: str, x: Tensor) -> np.ndarray:
        values = self.inputs.get(weight)
        if values is None or values.shape != x.shape:
            got = "nothing" if values is None else list(values.shape)
            raise BundleError(f"the rounded input of {weight}", got=got, expected=list(x.shape), fix="export again")
        return values


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
