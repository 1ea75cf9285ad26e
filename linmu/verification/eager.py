"""The step form run eagerly on a student's own weights: the reference that golden vectors are made from (torch)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from linmu.export.vision_graph import build_vision, run_tower
from linmu.export.vision_passes import FP16_LARGEST
from linmu.layout.vision_grid import vision_inputs
from linmu.model.modeling import decoder_layers
from linmu.runtimes.base import VisionFeatures
from linmu.runtimes.torch_runner import TorchRunner
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps

VISION_NOISE = 1e-5  # float32 implementations of one tower differ by this much of their output's std (7e-6 measured)
SMALLEST_HALF = 1024  # vision weights below this stay in float32 (linmu.export.vision_passes.store_weights_fp16)


class ReorderedOps(TorchOps):
    """The same operations with every matrix product summed in another order: as right as TorchOps, rounded otherwise.

    How far the two are apart is what float32 itself costs on this model and prompt.
    """

    def linear(self, x: Tensor, weight: str) -> Tensor:  # noqa: D102
        y = self._halves(x, self.weights[weight])
        bias = self.weights.get(weight + "_bias")
        return y if bias is None else y + bias

    def head(self, x: Tensor, weight: str) -> Tensor:  # noqa: D102
        return self._halves(x, self.weights[weight].T)

    def _halves(self, x: Tensor, matrix: Tensor) -> Tensor:
        half = len(matrix) // 2
        return x[..., half:] @ matrix[half:] + x[..., :half] @ matrix[:half]


class StudentRunner(TorchRunner):
    """A linmu.runtimes.base.Runner on a float32 student; shares its weights, nothing exported is read.

    With `other`, a twin that shares its weights and rounds otherwise: matrix sums in another order (ReorderedOps),
    other chunks in the scan, vision features moved by what float32 leaves open.
    """

    backend = "student"

    def __init__(self, student: PreTrainedModel, other: StudentRunner | None = None):
        self.form, self.other = decoder_form(student), other
        if other is not None:
            size = self.form.mmate.chunk_size
            self.form = replace(self.form, mmate=replace(self.form.mmate, chunk_size=size // 2 + 1))
        self.ops = TorchOps(self.form) if other is None else ReorderedOps(replace(self.form, weights={}))
        if other is not None:
            self.ops.weights = other.ops.weights
        self.state_specs = self.form.state_specs()
        family = self.form.family
        self.tower = build_vision(student, family.name) if not family.text_only else None

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
        outputs = {name: value.numpy() for name, value in run_tower(self.tower, feeds).items()}
        embeddings = outputs["embeddings"]
        if self.other is not None:
            signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), embeddings.shape)
            embeddings = embeddings + signs * np.float32(VISION_NOISE * embeddings.std())
        return VisionFeatures(embeddings.reshape(-1, embeddings.shape[-1]), outputs.get("deepstack"))


@torch.no_grad()
def round_student(student: PreTrainedModel, precision: str) -> None:
    """Round a student's weights, in place, as an export in this precision stores them ("fp32": nothing to do)."""
    if precision != "fp16":
        return
    for module in (*decoder_layers(student), student.get_output_embeddings()):
        for linear in module.modules():
            if isinstance(linear, nn.Linear):
                linear.weight.copy_(_half(linear.weight))
    embedding = student.get_input_embeddings()
    embedding.weight.copy_(_half(embedding.weight))
    if not student.linmu_family.text_only:
        for weight in build_vision(student, student.linmu_family.name).parameters():
            if weight.numel() >= SMALLEST_HALF and float(weight.abs().max()) <= FP16_LARGEST:
                weight.copy_(_half(weight))


def _half(weight: Tensor) -> Tensor:
    return weight.to(torch.float16).to(torch.float32)
