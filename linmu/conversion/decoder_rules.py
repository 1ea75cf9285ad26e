"""Which text decoders can become students, judged by their parts: nothing is computed here.

A student carries llama-like layers: two RMSNorms, q, k, v and o projections (biases, norms of every head's query and
key), a gated MLP with SiLU, rotary positions that do not depend on the length of the prompt. Every weight of a
decoder must have its place in that, or it would be dropped. What parts alone do not tell (multipliers, scales, layers
without positions, soft caps, ...) is found by linmu.conversion.structure_probe, which computes.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from linmu.errors import InputError

ACTIVATIONS = ("silu", "swish")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # the same angle per position, however long the prompt is
LENGTH_DEPENDENT = ("dynamic", "longrope")
_PROJECTION = r"self_attn\.[qkvo]_proj\.(weight|bias)"
_NORM = r"(self_attn\.[qk]_norm|input_layernorm|post_attention_layernorm)\.weight"
_MLP = r"mlp\.(gate|up|down)_proj\.(weight|bias)"
_KNOWN = re.compile(rf"embed_tokens\.weight|norm\.weight|layers\.\d+\.({_PROJECTION}|{_NORM}|{_MLP})")
_NEEDED = (
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)
ANOTHER = "convert a model whose text decoder is of the Llama, Mistral or Qwen kind"


def require_decoder(teacher: PreTrainedModel) -> None:
    """Raise InputError, naming the part, unless every part of the teacher's decoder has its place in a student."""
    decoder = teacher.get_decoder()
    config, kind = decoder.config, decoder.config.model_type
    _require_parts(teacher, decoder, kind)
    _require_rotary(decoder, kind)
    activation = next((v for name in ("hidden_act", "hidden_activation") if (v := getattr(config, name, None))), None)
    if activation not in ACTIVATIONS:
        raise InputError(f"the activation of the {kind} decoder", got=activation, expected="silu", fix=ANOTHER)
    for index, layer in enumerate(decoder.layers):
        if window := getattr(layer.self_attn, "sliding_window", None):
            raise sliding_window(index, window)
    for index, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind != "full_attention":
            raise InputError(f"attention of layer {index}", got=kind, expected="full_attention", fix=ANOTHER)


def sliding_window(layer: int, tokens: int) -> InputError:
    """The refusal of a teacher whose attention sees the last tokens only."""
    return InputError(
        "the teacher uses sliding-window attention",
        got=f"layer {layer} with a window of {tokens} tokens",
        expected="full attention",
        fix="if the model was trained on full attention, set use_sliding_window to false or sliding_window to null in "
        "its config.json (for vision-language models under text_config)",
    )


def _require_parts(teacher: PreTrainedModel, decoder: nn.Module, kind: str) -> None:
    names = {name for name, _ in decoder.named_parameters()} | set(decoder.state_dict())
    if strange := sorted(name for name in names if not _KNOWN.fullmatch(name)):
        raise InputError(
            f"the {kind} decoder has weights that a student does not carry",
            got=f"{strange[0]} ({len(strange)} in all)",
            expected="layers like Llama's",
            fix=ANOTHER,
        )
    needed = ["embed_tokens.weight", "norm.weight"]
    needed += [f"layers.{index}.{name}" for index in range(len(decoder.layers)) for name in _NEEDED]
    if absent := [name for name in needed if name not in names]:
        raise InputError(
            f"the {kind} decoder lacks weights that a student has",
            got=f"no {absent[0]} ({len(absent)} in all)",
            expected="layers like Llama's",
            fix=ANOTHER,
        )
    head = teacher.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise InputError("the teacher's head", got=head, expected="a linear layer without bias", fix=ANOTHER)


def _require_rotary(decoder: nn.Module, kind: str) -> None:
    rotary: Any = getattr(decoder, "rotary_emb", None)
    rope_type = getattr(rotary, "rope_type", None)
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        why = "its angles change with the length of the prompt" if rope_type in LENGTH_DEPENDENT else None
        raise InputError(
            f"the rope_type of the {kind} decoder",
            got=f"{rope_type}: {why}" if why else rope_type,
            expected="one of " + ", ".join(ROPE_TYPES),
            fix=ANOTHER,
        )
