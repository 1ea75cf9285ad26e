"""Every way a student's decoder can be stored, as the eager step form computes it: presets times state precisions.

State precisions cost little to compare: they share the weights, so one batch holds the same sequences once for each
precision, and the state of each part is rounded as its precision says (`GroupedOps`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linmu.calibration.record import CalibrationRecord
from linmu.formats.manifest import Manifest
from linmu.formats.precision import Precision
from linmu.formats.presets import PRESETS
from linmu.formats.state_precision import STATE_PRECISIONS
from linmu.model.folders import load_student
from linmu.quantize.form import preset_form
from linmu.reference.eager import StudentRunner, round_student, round_vision, stored_form
from linmu.reference.half_range import too_wide
from linmu.reference.student_manifest import student_manifest
from linmu.step import decoder
from linmu.step.form import DecoderForm
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps
from linmu.verification.players import RunnerPlayer


@dataclass(frozen=True)
class Variant:
    """A preset of a target; "fp32" of "onnx" is the student itself."""

    target: str
    preset: str

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.preset if self.preset in ("fp32", "fp16") else f"{self.preset} {self.target}"


FLOAT = Variant("onnx", "fp32")


def variants() -> list[Variant]:
    """All presets, float32 first. Target onnx multiplies fp16 weights in float32: no row of its own."""
    found = [FLOAT, Variant("jetson", "fp16")]
    for preset in ("int8", "int4", "fp8"):
        found += [Variant(target, preset) for target in PRESETS if preset in PRESETS[target]]
    return found


def open_variant(folder: Path, variant: Variant, record: CalibrationRecord) -> tuple[StudentRunner, Manifest]:
    """The reference that a bundle of this preset is held to, and a manifest of the student to place prompts with."""
    model = load_student(folder)
    half = variant.target == "jetson"
    weights = "fp32" if variant == FLOAT else "fp16"
    precision = Precision(
        weights=weights,
        floats=weights,
        activations="fp16" if half else "fp32",
        float32_matrices=too_wide(model, folder) if half else (),
    )
    manifest = replace(student_manifest(folder, model, decoder_form(model)), precision=precision)
    if variant.preset in ("fp32", "fp16"):
        round_student(model, precision)
        return StudentRunner(model, precision=precision), manifest
    precision = replace(precision, weights=variant.preset)
    quantized = preset_form(decoder_form(model), record, PRESETS[variant.target][variant.preset])
    round_vision(model, precision)
    return StudentRunner(model, precision=precision, form=stored_form(quantized.form, precision)), manifest


class GroupedOps:
    """A table of operations in which equal parts of the batch keep their state in one precision each.

    States travel as the float32 numbers that the stored ones stand for.
    """

    def __init__(self, ops: TorchOps, form: DecoderForm):
        self.ops = ops
        self.forms = [replace(form, state=precision) for precision in STATE_PRECISIONS]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def read_state(self, stored: Tensor, form: DecoderForm) -> Tensor:
        """As it is."""
        return stored

    def write_state(self, state: Tensor, form: DecoderForm) -> Tensor:
        """Each part rounded by the real operations, and read back."""
        parts = zip(state.chunk(len(self.forms)), self.forms, strict=True)
        return torch.cat([self.ops.read_state(self.ops.write_state(part, own), own) for part, own in parts])


class Sequences:
    """Sequences behind their prompts, each once per state precision: rows are precisions times sequences."""

    def __init__(self, runner: StudentRunner):
        self.form, self.ops = runner.form, GroupedOps(runner.ops, runner.form)
        self.names = {spec.name: spec.output for spec in runner.state_specs}
        self._traced: dict[int, Callable[..., tuple[Tensor, ...]]] = {}

    def begin(self, players: Sequence[RunnerPlayer]) -> None:
        """Take over where players have read their prompts."""
        groups, states = len(STATE_PRECISIONS), [player.handle.tensors for player in players]
        past = {name: torch.cat([state[name] for state in states] * groups) for name in self.names}
        for name in past:
            if name.endswith(".recurrent"):  # a prompt ends in a rounding too
                past[name] = self.ops.write_state(past[name], self.form)
        self.past = list(past.values())
        self.positions = torch.tensor([player.position for player in players] * groups)
        self.lengths = torch.tensor([player.tokens for player in players] * groups)

    def step(self, tokens: Tensor) -> Tensor:
        """One token [rows] each -> logits [rows, V]."""
        inputs = (tokens[:, None], self.positions[:, None], self.lengths, *self.past)
        if len(tokens) not in self._traced:  # the same kernels without Python's share of the time
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._traced[len(tokens)] = torch.jit.trace(self._call, inputs, check_trace=False)
        logits, *self.past = self._traced[len(tokens)](*inputs)
        self.positions, self.lengths = self.positions + 1, self.lengths + 1
        return logits[:, 0]

    def _call(self, tokens: Tensor, positions: Tensor, lengths: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        positions = positions.expand(3, -1, -1) if self.form.rope_axes == 3 else positions
        state = dict(zip(self.names, past, strict=True))
        logits, present = decoder.step(self.ops, self.form, tokens, positions, state, lengths)
        return (logits, *(present[output] for output in self.names.values()))
