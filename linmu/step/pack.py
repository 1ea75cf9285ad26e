"""Student -> DecoderForm: packs the student's weights, unchanged, under the names of form.py."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from linmu.config import MMateConfig
from linmu.errors import InputError
from linmu.model.attention import MMateAttention
from linmu.model.flex_ma import Direction
from linmu.model.mapped import mapped_files
from linmu.model.rotary import frequency_matrix
from linmu.step.form import DecoderForm

if TYPE_CHECKING:
    from linmu.step.form import Weight

ACTIVATIONS = ("silu", "swish")


def decoder_form(student: PreTrainedModel) -> DecoderForm:
    """The step form of a student; raises InputError for a decoder it cannot express (activation, dynamic RoPE)."""
    decoder, config = student.get_decoder(), student.config.get_text_config()
    if config.hidden_act not in ACTIVATIONS:
        raise InputError("the decoder's activation", got=config.hidden_act, expected="silu")
    rope_type = decoder.rotary_emb.rope_type
    if "dynamic" in rope_type or rope_type == "longrope":
        raise InputError("the decoder's rope_type changes with length", got=rope_type, expected="a static one")
    family = student.linmu_family
    block: MMateAttention = decoder.layers[0].self_attn
    head, embedding = student.get_output_embeddings(), student.get_input_embeddings()
    tied = head.weight is embedding.weight
    weights: dict[str, Weight] = {
        "token_embedding": lambda: embedding.weight,
        "rope": lambda: frequency_matrix(decoder.rotary_emb, family),
    }
    if not tied:
        weights["head"] = lambda: head.weight
    for index, layer in enumerate(decoder.layers):
        weights |= {f"layers.{index}.{name}": weight for name, weight in _layer(layer).items()}
    weights["norm"] = lambda: decoder.norm.weight
    files = mapped_files(student)
    if files is not None:
        weights = {name: files.reader(thunk) for name, thunk in weights.items()}
    return DecoderForm(
        family=family,
        mmate=student.mmate,
        layers=len(decoder.layers),
        hidden=block.dims.hidden,
        heads=block.dims.heads,
        kv_heads=block.dims.kv_heads,
        head_dim=block.dims.head_dim,
        vocab=head.weight.shape[0],
        eps=float(decoder.norm.variance_epsilon),
        tied=tied,
        qk_norm_eps=block.dims.qk_norm_eps,
        deepstack=len(getattr(student.config.vision_config, "deepstack_visual_indexes", ())) if family.deepstack else 0,
        rope_axes=1 if family.rope == "plain" else 3,
        rope_scale=float(decoder.rotary_emb.attention_scaling),
        weights=weights,
        streamed=files is not None,
    )


def _layer(layer: nn.Module) -> dict[str, Weight]:
    block: MMateAttention = layer.self_attn
    mmate: MMateConfig = block.mmate
    mlp = layer.mlp
    forward, backward = block.scan_forward, block.scan_backward
    rows = [block.flex.q_proj, block.flex.k_proj, block.flex.v_proj, forward.dt_proj]
    if backward is not None:
        rows += [backward.dt_proj, block.gate_forward, block.gate_backward]
    if block.alpha is not None:
        rows.append(block.alpha)
    weights: dict[str, Weight] = {
        "norm_in": lambda: layer.input_layernorm.weight,
        "norm_post": lambda: layer.post_attention_layernorm.weight,
        "in_proj": lambda: _columns(rows),
        "out_proj": lambda: _columns([block.o_proj]),
        "gate_up": lambda: _columns([mlp.gate_proj, mlp.up_proj]),
        "down": lambda: _columns([mlp.down_proj]),
        **_direction("f", forward),
    }
    biased = {
        "qkv": rows[:3],
        "gates": rows[4 + (backward is not None) :],
        "out_proj": [block.o_proj],
        "gate_up": [mlp.gate_proj, mlp.up_proj],
        "down": [mlp.down_proj],
    }
    if backward is not None:
        weights |= _direction("b", backward)
    if block.swin is not None:
        swin = [block.swin.q_proj, block.swin.k_proj, block.swin.v_proj]
        weights["swin"] = lambda: _columns(swin)
        biased["swin"] = swin
    if block.dims.qk_norm:
        for name, branch in (("qk_norm", block.flex), ("swin_qk_norm", block.swin)):
            if branch is not None:
                weights[name] = partial(_head_norms, block, branch)
    for name, linears in biased.items():
        if any(linear.bias is not None for linear in linears):
            weights[name + "_bias"] = partial(_biases, linears)
    assert mmate.taps == forward.conv_weight.shape[-1]
    return weights


def _direction(tag: str, direction: Direction) -> dict[str, Weight]:
    weights: dict[str, Weight] = {
        f"conv_{tag}": lambda: direction.conv_weight,
        f"conv_{tag}_bias": lambda: direction.conv_bias,
        f"dt_bias_{tag}": lambda: direction.dt_bias,
        f"decay_{tag}": lambda: -direction.a_log.float().exp(),
        f"norm_{tag}": lambda: direction.norm.weight.flatten(),
    }
    skip = direction.skip
    if skip is not None:
        weights[f"skip_{tag}"] = lambda: skip.repeat_interleave(direction.head_dim)
    return weights


def _columns(linears: list[nn.Linear]) -> Tensor:
    return torch.cat([linear.weight.T for linear in linears], 1)


def _biases(linears: list[nn.Linear]) -> Tensor:
    zero = [linear.weight.new_zeros(linear.out_features) for linear in linears]
    return torch.cat([z if linear.bias is None else linear.bias for z, linear in zip(zero, linears, strict=True)])


def _head_norms(block: MMateAttention, branch: nn.Module) -> Tensor:
    q, k = branch.q_norm.weight, branch.k_norm.weight
    return torch.cat([q.expand(block.dims.heads, -1), k.expand(block.dims.kv_heads, -1)])
