"""What a student learns from on one batch: one pass of the teacher, vision encoded once and shared.

Glossary
    rows      the predicted tokens of a batch: where `labels`, moved one to the left, count; [N] into [B*S]
    layer_in  the attention's input of every layer, after the layer's norm  [B,S,D]
    layer_out the attention's output, after W_O                           [B,S,D]
    hidden    the residual stream after every layer                       [B,S,D]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from linmu.distill.losses import TopK, top_k
from linmu.distill.recipe import Stage
from linmu.model.modeling import decoder_layers

NOT_FOR_MODELS = ("labels", "linmu_media", "sample_ids", "window_off")
IGNORE = -100


@dataclass(frozen=True)
class Needs:
    """Which signals a stage uses; `top_k` teacher logits per row (0 = all) at `temperature`.

    decoder: whether the student runs by itself, so that it needs what the teacher's decoder got.
    """

    layer: bool = False
    hidden: bool = False
    logits: bool = False
    top_k: int = 0
    temperature: float = 1.0
    decoder: bool = False

    @classmethod
    def of(cls, stage: Stage, top: int) -> Needs:
        """Those of a stage's losses."""
        layer, hidden, logits = (name in stage.weights for name in ("layer", "hidden", "logits"))
        return cls(layer, hidden, logits, top, stage.temperature, bool(set(stage.weights) - {"layer"}))


@dataclass
class Signals:
    """A teacher's pass over a batch; lists hold a tensor per layer and are empty where nobody needs them.

    decoder: keyword arguments of the decoder, vision merged in; position_embeddings: (cos, sin) of the layers.
    """

    decoder: dict[str, Any]
    position_embeddings: tuple[Tensor, Tensor] | None = None
    layer_in: list[Tensor] = field(default_factory=list)
    layer_out: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    logits: Tensor | TopK | None = None


class SignalSource(Protocol):
    """Where signals come from: a teacher in memory, or a cache on disk."""

    def signals(self, batch: dict[str, Any], needs: Needs) -> Signals:
        """Signals of one collated batch, on the batch's device."""


class LiveTeacher:
    """Signals of a teacher in memory."""

    def __init__(self, teacher: PreTrainedModel):
        self.teacher = teacher.eval().requires_grad_(False)

    @torch.no_grad()
    def signals(self, batch: dict[str, Any], needs: Needs) -> Signals:
        """One pass of the teacher; its head sees predicted tokens only."""
        signals = Signals({})
        decoder = self.teacher.get_decoder()
        with _hooks(decoder, decoder_layers(self.teacher), signals, needs):
            output = self.teacher.base_model(**model_inputs(batch), use_cache=False)
        if needs.logits:
            rows = output.last_hidden_state.flatten(0, 1)[label_rows(batch["labels"])]
            logits = self.teacher.get_output_embeddings()(rows)
            signals.logits = top_k(logits, needs.top_k, needs.temperature) if needs.top_k else logits
        return signals


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a batch that a teacher takes."""
    return {name: value for name, value in batch.items() if name not in NOT_FOR_MODELS}


def label_rows(labels: Tensor) -> Tensor:
    """Places [N] in the flattened [B*S] tokens whose next token counts: labels [B,S], -100 where it does not."""
    counts = torch.zeros_like(labels, dtype=torch.bool)
    counts[:, :-1] = labels[:, 1:] != IGNORE
    return counts.flatten().nonzero()[:, 0]


def next_labels(labels: Tensor) -> Tensor:
    """The tokens [N] to predict at `label_rows`, in the same order."""
    shifted = labels[:, 1:]
    return shifted[shifted != IGNORE]


def valid_tokens(batch: dict[str, Any]) -> Tensor:
    """[B,S] bool: False on padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


@contextmanager
def layer_outputs(layers: nn.ModuleList, into: list[Tensor], enabled: bool = True) -> Iterator[None]:
    """Collect what every layer returns while the block runs."""
    handles = []
    if enabled:
        into[:] = [None] * len(layers)

        def collect(index: int):
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                into[index] = output if isinstance(output, Tensor) else output[0]

            return hook

        handles = [layer.register_forward_hook(collect(index)) for index, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _hooks(decoder: nn.Module, layers: nn.ModuleList, signals: Signals, needs: Needs) -> Iterator[None]:
    def on_decoder(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if args:
            raise TypeError("a decoder that is called with positional arguments")
        signals.decoder = {
            name: value for name, value in kwargs.items() if name not in ("use_cache", "past_key_values")
        }

    def on_attention(_: nn.Module, __: tuple, kwargs: dict[str, Any], output: tuple[Tensor, Any]) -> None:
        signals.position_embeddings = kwargs["position_embeddings"]
        signals.layer_in.append(kwargs["hidden_states"])
        signals.layer_out.append(output[0])

    handles = [decoder.register_forward_pre_hook(on_decoder, with_kwargs=True)]
    if needs.layer:
        handles += [layer.self_attn.register_forward_hook(on_attention, with_kwargs=True) for layer in layers]
    try:
        with layer_outputs(layers, signals.hidden, needs.hidden):
            yield
    finally:
        for handle in handles:
            handle.remove()
