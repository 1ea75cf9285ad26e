"""Whether a student's decoder is its teacher's in everything but the mixers: computed, not looked up.

The teacher runs on a few tokens once (teacher_record.py). Then the student's decoder, and its step form, get the
teacher's own attention outputs in the place of what their mixers would give: all hidden states and logits must then be
the teacher's. The mixers' own parts (projections, norms of heads, rotation, output projection) are checked with softmax
attention in the place of the recurrence: that must be the teacher's attention. Whatever a decoder does besides, be it a
multiplier, a soft cap or a layer without positions, shows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from linmu.config import CARRIED_RULES
from linmu.conversion.teacher_record import (
    TeacherRecord,
    differs,
    in_float32,
    logits_of,
    require_equal,
    softmax_attention,
    softmax_mixer,
)
from linmu.model.attention import MMateAttention
from linmu.step.decoder import prefill
from linmu.step.form import DecoderForm, is_matrix
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps


@torch.no_grad()
def check_student(student: PreTrainedModel, record: TeacherRecord) -> None:
    """Raise InputError, naming the first layer, unless the student's decoder and step form are the teacher's.

    A student of a rule that the step form does not carry has none.
    """
    with in_float32(student), _with_attention_of(student, record):
        logits = student(**record.arguments).logits
    require_equal(logits, record.logits, "logits")
    if student.mmate.rule not in CARRIED_RULES:
        return
    form = decoder_form(student)
    table = form.weights["token_embedding"]()
    require_equal(table[record.ids], record.inputs[0], "what the first layer gets")
    ops = _ProbeOps(_probe_form(form), record)
    past: Any = defaultdict(lambda: None)  # the recurrence has no state here
    try:
        logits, _ = prefill(ops, ops.form, record.inputs[0], record.positions, past, None, None, None)
    except RuntimeError as error:  # sizes that do not meet
        raise differs(f"layer {ops.layer}", error) from error
    require_equal(logits, record.logits, "logits")


@contextmanager
def _with_attention_of(student: PreTrainedModel, record: TeacherRecord) -> Iterator[None]:
    """While open, every mixer returns what the teacher's attention did, if its own parts would make the same."""
    decoder = student.get_decoder()
    blocks: list[MMateAttention] = [layer.self_attn for layer in decoder.layers]
    handles = []

    def answer(index: int, block: MMateAttention, hidden_states: Tensor, position_embeddings: Any, **_: Any) -> Any:
        require_equal(hidden_states, record.attention_inputs[index], f"layer {index}: what attention gets")
        ours = softmax_mixer(
            block.flex, block.o_proj, record.attention_inputs[index].to(hidden_states.dtype), position_embeddings
        )
        require_equal(ours, record.mixed[index], f"layer {index}: attention")
        return record.mixed[index].to(hidden_states.dtype), None

    def on_layer(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        require_equal(
            hidden_states, record.inputs[index], f"layer {index - 1}" if index else "what the first layer gets"
        )

    for index, (layer, block) in enumerate(zip(decoder.layers, blocks, strict=True)):
        block.forward = partial(answer, index, block)  # type: ignore[method-assign]
        hook = partial(lambda i, _, args, kwargs: on_layer(i, args, kwargs), index)
        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    handles.append(
        decoder.norm.register_forward_hook(lambda _, __, output: require_equal(output, record.final, "the last norm"))
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for block in blocks:
            del block.__dict__["forward"]


def _probe_form(form: DecoderForm) -> DecoderForm:
    """The form with float32 layers read one at a time, and with rotation whatever the settings say."""
    weights = {
        name: thunk if is_matrix(name) and not name.startswith("layers.") else partial(_float, thunk)
        for name, thunk in form.weights.items()
    }
    return replace(form, mmate=replace(form.mmate, rope=True), weights=weights, streamed=True)


def _float(thunk: Any) -> Tensor:
    return thunk().float()


class _ProbeOps(TorchOps):
    """The step form's operations with softmax attention for the recurrence; compares with the teacher on the way."""

    def __init__(self, form: DecoderForm, record: TeacherRecord):
        super().__init__(form)
        self.form, self.record, self.layer = form, record, 0

    def enter(self, scope: str) -> None:
        if scope:
            self.layer = int(scope.split(".")[1])

    def add_rms_norm(self, x: Tensor, update: Tensor | None, weight: str, eps: float) -> tuple[Tensor, Tensor]:
        if weight.endswith("norm_in"):
            teacher_input = self.record.inputs[self.layer]
            require_equal(
                x if update is None else x + update, teacher_input, f"layer {self.layer - 1} of the step form"
            )
            u, x = super().add_rms_norm(teacher_input, None, weight, eps)
            require_equal(
                u, self.record.attention_inputs[self.layer], f"layer {self.layer} of the step form: what attention gets"
            )
            return u, x
        u, x = super().add_rms_norm(x, update, weight, eps)
        if weight == "norm":
            require_equal(u, self.record.final, f"layer {self.layer} of the step form")
        return u, x

    def linear(self, x: Tensor, weight: str) -> Tensor:
        y = super().linear(x, weight)
        if not weight.endswith("out_proj"):
            return y
        require_equal(y, self.record.mixed[self.layer], f"layer {self.layer} of the step form: attention")
        return self.record.mixed[self.layer]

    def linear_attention(self, q, k, v, g, past, restart, form: DecoderForm) -> tuple[Tensor, Any]:
        q, k, v = (x.unflatten(-1, (-1, form.head_dim)) for x in (q, k, v))
        return softmax_attention(q, k, v), None

    def causal_conv(self, x: Tensor, weight: str, past: Any) -> tuple[Tensor, Any]:
        return x, past

    def log_decay(self, raw: Tensor, dt_bias: str, scale: str) -> Tensor:
        return raw

    def head_norm(self, x: Tensor, weight: str, form: DecoderForm) -> Tensor:
        return x

    def sigmoid(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)  # all of the mix is the recurrence's, none the text window's

    def scale_channels(self, x: Tensor, weight: str) -> Tensor:
        return torch.zeros_like(x)  # the skip of a value around the recurrence

    def prepare_window(self, x: Tensor, fill: Any, form: DecoderForm) -> Any:
        return None

    def beyond_window(self, recent: Any) -> Tensor:
        return torch.ones(1, 1, 1, dtype=torch.bool)

    def sliding_attention(self, qk, v, past_key, past_value, recent, form: DecoderForm) -> tuple[Tensor, Any, Any]:
        return torch.zeros_like(qk[..., : form.heads * form.head_dim]), past_key, past_value

    def read_state(self, stored: Any, form: DecoderForm) -> Any:
        return None

    def write_state(self, state: Any, form: DecoderForm) -> Any:
        return state

    def last_token(self, x: Tensor) -> Tensor:
        return x

    def head(self, x: Tensor, weight: str) -> Tensor:
        return logits_of(self.weights[weight], x)
