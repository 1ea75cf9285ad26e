"""What float16 states change: the calibration data's text as one long conversation, every state also rounded (torch).

Glossary
    shadow      a layer's recurrent state [B, M, d, d], rounded to float16 behind every token as a decode step would,
                and fed the inputs that the exact state is fed: the error is this layer's own, as errors of matrices are
    y, moved    the forward direction behind its head norm (what the output projection reads of text), computed from
                the exact state and from the shadow; error_curve.py sums their squares
The text is that of the data, not the student's own: that may end in one token over and over, which drifts otherwise.
It is read as a prompt, for the exact states are needed at its end only: a matrix is used once, not once a token.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from linmu.calibration.error_curve import empty_curve, octave
from linmu.calibration.samples import DataSamples, RandomSamples
from linmu.formats.manifest import Manifest
from linmu.processing import ModelInputs
from linmu.reference.eager import StudentRunner
from linmu.runtimes.prompt import place_prompt, prompt_pieces
from linmu.step.form import DecoderForm
from linmu.step.torch_ops import TorchOps

PRECISION = "fp16"


def text_stream(source: DataSamples | RandomSamples, media: tuple[int, ...], count: int) -> np.ndarray:
    """`count` token ids [count] int64: questions and answers one after the other, again from the first at the end."""
    parts, total = [np.zeros(0, np.int64)], 0
    for sample in source.read(0):
        ids = np.concatenate([sample.inputs.input_ids, np.array(sample.answer, np.int64)])
        parts.append(ids[~np.isin(ids, media)])
        total += len(parts[-1])
        if total >= count:
            break
    return np.resize(np.concatenate(parts), count if total else 0)


def measure_states(model: PreTrainedModel, manifest: Manifest, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Error curves by `layers.<i>.recurrent` of a student that reads tokens [S]; none when there are no tokens."""
    if not len(tokens):
        return {}
    inputs = ModelInputs(tokens, "")
    with ShadowedRunner(model) as runner:
        state = runner.new_state()
        for piece in prompt_pieces(inputs, runner, manifest, place_prompt(inputs, manifest)):
            runner.prefill(piece, state)
        return runner.ops.curves


class ShadowedOps(TorchOps):
    """TorchOps that computes every forward recurrence again from its shadow, token by token."""

    def __init__(self, form: DecoderForm):
        super().__init__(form)
        self.scope = ""
        self.curves: dict[str, np.ndarray] = {}
        self._shadows: dict[str, tuple[Tensor, int]] = {}  # and how often each was rounded
        self._rounded = replace(form, state=PRECISION)
        self._change: tuple[Tensor, int] | None = None  # of the recurrence just computed, its head norm still to come

    def enter(self, scope: str) -> None:
        self.scope = scope

    def linear_attention(self, q, k, v, g, past, restart, form: DecoderForm) -> tuple[Tensor, Tensor]:
        y, state = super().linear_attention(q, k, v, g, past, restart, form)
        if past is None:  # the backward direction keeps nothing between calls
            return y, state
        shadow, roundings = self._shadows.get(self.scope, (torch.zeros_like(past), 0))
        moved = []
        for t in range(q.shape[1]):
            token = slice(t, t + 1)
            output, shadow = super().linear_attention(
                q[:, token], k[:, token], v[:, token], g[:, token], shadow, None, form
            )
            shadow = self.read_state(self.write_state(shadow, self._rounded), self._rounded)
            moved.append(output)
        self._shadows[self.scope] = shadow, roundings + len(moved)
        self._change = torch.cat(moved, 1) - y, roundings
        return y, state

    def head_norm(self, x: Tensor, weight: str, form: DecoderForm) -> Tensor:
        y = super().head_norm(x, weight, form)
        if self._change is not None:
            change, roundings = self._change
            self._change = None
            self._see(super().head_norm(x + change, weight, form), y, roundings)
        return y

    def _see(self, moved: Tensor, y: Tensor, roundings: int) -> None:
        """Outputs [B, S, H*d] of tokens, the first of which read a state that was rounded `roundings` times."""
        curve = self.curves.setdefault(f"{self.scope}recurrent", empty_curve())
        sums = torch.stack([x.double().square().sum((0, 2)) for x in (moved - y, y)], 1).numpy()
        for count, row in enumerate(sums, roundings):
            if count:
                curve[octave(count)] += row


class ShadowedRunner(StudentRunner):
    """A StudentRunner whose `ops.curves` fill while it reads text."""

    ops: ShadowedOps

    def _operations(self) -> TorchOps:
        return ShadowedOps(self.form)
