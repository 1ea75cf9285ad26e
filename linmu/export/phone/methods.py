"""The methods of a program with explicit state: modules whose inputs and outputs are those that the manifest lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from linmu.export.onnx.decoder_graphs import GraphStyle
from linmu.export.onnx.plain_ops import PlainOps
from linmu.export.phone.ops import PhoneOps, table_rows
from linmu.export.phone.weights import TABLES, Buffers
from linmu.reference.vision_towers import VisionTower
from linmu.specs import GraphSpec, TensorSpec
from linmu.step import decoder
from linmu.step.call_specs import prefill_inputs, step_inputs
from linmu.step.form import DecoderForm

STYLE = GraphStyle("executorch", PlainOps, batch=1, fixed_windows=True)  # one sequence, window rows of one length


@dataclass(frozen=True)
class Method:
    """A module, and its inputs and outputs by name in the order of its arguments and results."""

    module: nn.Module
    spec: GraphSpec


class _Decoder(nn.Module):
    """A module around PhoneOps; weights are the caller's tensors, not copies."""

    def __init__(self, form: DecoderForm, weights: Mapping[str, Tensor], inputs: list[TensorSpec]):
        super().__init__()
        self.form, self.names = form, [spec.name for spec in inputs]
        self.ops = PhoneOps(form, Buffers(self, weights))
        self.states = form.state_specs()

    def named(self, values: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Arguments by input name."""
        return dict(zip(self.names, values, strict=True))

    def results(self, logits: Tensor, present: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Logits and states in the manifest's order."""
        return (logits, *(present[spec.output] for spec in self.states))


class Prefill(_Decoder):
    """A piece of a prompt: inputs of `prefill_inputs` -> logits [1,1,V], every present.*."""

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        named = self.named(values)
        layout = {name.removeprefix("layout."): x for name, x in named.items() if name.startswith("layout.")} or None
        embeds, positions = named["inputs_embeds"], named["position_ids"]
        fill = named.get("past_length")
        return self.results(*decoder.prefill(self.ops, self.form, embeds, positions, named, layout, None, fill))


class Step(_Decoder):
    """One token: inputs of `step_inputs` -> logits [1,1,V], every present.*."""

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        named = self.named(values)
        ids, positions = named["input_ids"], named["position_ids"]
        return self.results(*decoder.step(self.ops, self.form, ids, positions, named, named.get("past_length")))


class Embedding(nn.Module):
    """input_ids [1,S] -> embeddings [1,S,D + extra]; the extra channels are 0 (linmu.export.phone.stock)."""

    def __init__(self, weights: Mapping[str, Tensor], extra: int):
        super().__init__()
        self.table, self.extra = Buffers(self, weights), extra

    def forward(self, input_ids: Tensor) -> Tensor:
        """See the class."""
        return nn.functional.pad(table_rows(input_ids, self.table, "token_embedding"), (0, self.extra))


def decoder_methods(form: DecoderForm, weights: Mapping[str, Tensor], file: str, extra: int = 0) -> dict[str, Method]:
    """token_embedding, prefill and step of a decoder, in `file`; extra: channels behind an embedding's own."""
    states = form.state_specs()
    outputs = (
        TensorSpec("logits", "float32", (1, 1, form.vocab)),
        *(TensorSpec(spec.output, spec.dtype, spec.shape) for spec in states),
    )
    ids = TensorSpec("input_ids", "int64", (1, "tokens"))
    rows = TensorSpec("inputs_embeds", "float32", (1, "tokens", form.hidden + extra))
    prefill, step = prefill_inputs(form, STYLE.fixed_windows), step_inputs(form, 1)
    return {
        "token_embedding": Method(
            Embedding(table_weights(weights, "token_embedding"), extra), GraphSpec(file, (ids,), (rows,))
        ),
        "prefill": Method(
            Prefill(form, used_weights(form, weights), prefill), GraphSpec(file, tuple(prefill), outputs)
        ),
        "step": Method(Step(form, weights, step), GraphSpec(file, tuple(step), outputs)),
    }


def table_weights(weights: Mapping[str, Tensor], table: str) -> dict[str, Tensor]:
    """A table, or the parts of a quantized one."""
    return {name: x for name, x in weights.items() if name.split(".")[0] == table}


def used_weights(form: DecoderForm, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a method needs that takes embeddings: the layers' weights, and the table that the head multiplies by."""
    head = "token_embedding" if form.tied else "head"
    unused = {name for table in TABLES if table != head for name in table_weights(weights, table)}
    return {name: x for name, x in weights.items() if name not in unused}


def vision_method(tower: VisionTower, file: str) -> Method:
    """The tower on one tile: pixel_values [1, channels, height, width] -> embeddings [1, tokens, D]."""
    inputs = tuple(_one_tile(spec) for spec in tower.inputs)
    for part in tower.modules():  # fused attention would be taken apart with tests for rows that are masked throughout
        if (config := getattr(part, "config", None)) is not None:
            config._attn_implementation = "eager"
    return Method(tower, GraphSpec(file, inputs, tuple(_one_tile(spec) for spec in tower.outputs)))


def _one_tile(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, tuple(1 if dim == "tiles" else dim for dim in spec.shape))


def example_inputs(spec: GraphSpec, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Zeros of every input's type, symbolic dimensions as `sizes` says (all at least 2)."""
    shapes = [[sizes[dim] if isinstance(dim, str) else dim for dim in item.shape] for item in spec.inputs]
    types = [getattr(torch, item.dtype) for item in spec.inputs]
    return tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, types, strict=True))
