"""The step form run eagerly on a student's own weights: the reference that golden vectors are made from (torch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from linmu.formats.precision import Precision
from linmu.formats.state_precision import LARGEST_HALF
from linmu.layout.vision_grid import vision_inputs
from linmu.reference.half_range import packed_linears
from linmu.reference.torch_runner import TorchRunner
from linmu.reference.vision import build_vision, run_tower
from linmu.runtimes.base import VisionFeatures
from linmu.step.form import DecoderForm, is_matrix
from linmu.step.half_ops import HalfOps, half_matrices
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps

FLOAT32 = Precision()
VISION_NOISE = 1e-5  # float32 implementations of one tower differ by this much of their output's std (7e-6 measured)
HALF_QUANTUM = 2.0**-10  # of float16
SMALLEST_HALF = 1024  # vision weights below this stay in float32 (linmu.export.vision.passes.store_weights_fp16)


class ReorderedOps(TorchOps):
    """The same operations with every matrix product summed in another order: as right as TorchOps, rounded otherwise.

    How far the two are apart is what float32 itself costs on this model and prompt.
    """

    def product(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        middle = y.shape[-2] // 2
        return x[..., middle:] @ y[..., middle:, :] + x[..., :middle] @ y[..., :middle, :]


class DrawnHalfOps(HalfOps, ReorderedOps):
    """HalfOps whose products go to either neighbouring float16 number, as likely as the sum is near it.

    Sums in another order, or another exp, move a number by its last float32 bit and now and then over a border between
    two float16 numbers. Behind a few layers everything has moved a little, and every rounding is a draw of its own:
    that is what this twin does from the first layer on. A twin that only sums otherwise shows fewer such steps than
    another implementation takes, and may miss the one place where the model answers to them. A draw is a hash of the
    sum's own bits: the same whatever else is computed beside or before it.
    """

    def round_product(self, x: Tensor) -> Tensor:  # noqa: D102
        nearest = x.to(torch.float16)
        rest = x - nearest.to(x.dtype)
        towards = torch.where(rest > 0, torch.inf, -torch.inf).to(torch.float16)
        other = torch.nextafter(nearest, towards).to(x.dtype)
        share = rest.abs() / (other - nearest.to(x.dtype)).abs()  # at most half; infinities give NaN: no draw
        return torch.where(_draw(x) < share, other, nearest.to(x.dtype))


def _draw(x: Tensor) -> Tensor:
    """A number in [0, 1) for each number of x, from the bits of its float32 value (multiplied and shifted thrice)."""
    bits = x.to(torch.float32).contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    for factor, shift in ((0x9E3779B1, 15), (0x85EBCA77, 13), (0xC2B2AE3D, 16)):
        bits = (bits * factor) & 0xFFFFFFFF
        bits = bits ^ (bits >> shift)
    return bits.to(torch.float64) / 2.0**32


class StudentRunner(TorchRunner):
    """A linmu.runtimes.base.Runner on a float32 student; shares its weights, nothing exported is read.

    With `other`, a twin that shares its weights and rounds otherwise: matrix sums in another order (ReorderedOps),
    other chunks in the scan, vision features moved by what float32 leaves open. `form`: the student's, quantized.
    """

    backend = "student"

    def __init__(
        self,
        student: PreTrainedModel,
        other: StudentRunner | None = None,
        precision: Precision = FLOAT32,
        form: DecoderForm | None = None,
    ):
        self.other = other
        self.form = replace(form or decoder_form(student), state=precision.state) if other is None else other.form
        own = half_matrices(self.form, precision)
        self.halves: frozenset[str] = own if other is None else other.halves
        if other is not None:
            size = self.form.mmate.chunk_size
            self.form = replace(self.form, mmate=replace(self.form.mmate, chunk_size=size // 2 + 1))
        self.ops = self._operations()
        if other is not None:
            self.ops.weights, self.ops.inputs = other.ops.weights, other.ops.inputs
        self.state_specs = self.form.state_specs()
        family = self.form.family
        self.tower = build_vision(student, family.name) if not family.text_only else None

    def _operations(self) -> TorchOps:
        if self.other is None:
            return HalfOps(self.form, self.halves) if self.halves else TorchOps(self.form)
        bare = replace(self.form, weights={}, quantized={}, streamed=False)
        return DrawnHalfOps(bare, self.halves) if self.halves else ReorderedOps(bare)

    @property
    def quantum(self) -> float:
        """The relative distance of two neighbours among what products and states are rounded to (0: float32)."""
        return HALF_QUANTUM if self.halves or self.form.state == "fp16" else 0.0

    @property
    def vision_quantum(self) -> float:
        """The same of the vision tower, which has no state."""
        return HALF_QUANTUM if self.halves else 0.0

    @property
    def lossy(self) -> bool:
        """Whether this is another function than the float32 student: half products, quantized matrices or states."""
        return bool(self.halves or self.form.quantized or self.form.state != "fp32")

    @property
    def rounds(self) -> bool:
        """Whether inputs of products are rounded: then a sum's last bit can move a code by a step."""
        return any(format.input for format in self.form.quantized.values())

    def close(self) -> None:
        """Drop the weights."""
        self.ops.weights.clear()

    @torch.no_grad()
    def encode(self, call: dict[str, np.ndarray]) -> VisionFeatures:
        """The student's vision tower on one call."""
        assert self.tower is not None
        feeds = {name: value for name, value in call.items() if name != "grid"}
        if "grid" in call:
            t, h, w = (int(n) for n in call["grid"])
            feeds |= vision_inputs(self.form.family.name, self.tower.facts, (t, h, w))
        half, twin = bool(self.halves), self.other is not None
        outputs = {name: value.numpy() for name, value in run_tower(self.tower, feeds, half, twin).items()}
        embeddings = outputs["embeddings"]
        if twin and not half:
            signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), embeddings.shape)
            embeddings = embeddings + signs * np.float32(VISION_NOISE * embeddings.std())
        return VisionFeatures(embeddings.reshape(-1, embeddings.shape[-1]), outputs.get("deepstack"))


@torch.no_grad()
def round_student(student: PreTrainedModel, precision: Precision) -> None:
    """Round a student's weights, in place, as a bundle of this precision (manifest) stores them."""
    if precision.floats != "fp16":
        return
    float32_matrices = set(precision.float32_matrices)
    for name, linears in packed_linears(student).items():
        for linear in linears if name not in float32_matrices else ():
            linear.weight.copy_(_half(linear.weight))
    if "token_embedding" not in float32_matrices:
        embedding = student.get_input_embeddings()
        embedding.weight.copy_(_half(embedding.weight))
    round_vision(student, precision)


@torch.no_grad()
def round_vision(student: PreTrainedModel, precision: Precision) -> None:
    """The part of `round_student` that concerns the vision tower."""
    if student.linmu_family.text_only or precision.floats != "fp16":
        return
    for weight in build_vision(student, student.linmu_family.name).parameters():
        if weight.numel() >= SMALLEST_HALF and float(weight.abs().max()) <= LARGEST_HALF:
            weight.copy_(_half(weight))


def stored_form(form: DecoderForm, precision: Precision) -> DecoderForm:
    """A quantized form with the matrices that stayed float as a bundle of this precision stores them."""
    if precision.floats != "fp16":
        return form
    float32_matrices = set(precision.float32_matrices)
    matrices = [name for name in form.weights if is_matrix(name) and name not in float32_matrices]
    halved = {name: _rounded(form.weights[name]) for name in matrices}
    return replace(form, weights={**form.weights, **halved})


def _rounded(thunk: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: _half(thunk().detach())


def _half(weight: Tensor) -> Tensor:
    return weight.to(torch.float16).to(torch.float32)
