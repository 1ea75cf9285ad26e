"""Which parameters of a student form which group of a recipe: one literal table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from linmu.errors import InputError

# Names below the decoder, adapters first: "layers.3.self_attn.flex.q_proj.weight". First match wins.
PATTERNS: dict[str, str] = {
    "lora": r"\.lora_",
    "flex_new": r"\.self_attn\.(scan_forward|scan_backward|gate_forward|gate_backward)\.",
    "flex_inherited": r"\.self_attn\.flex\.",
    "swin": r"\.self_attn\.swin\.",
    "alpha": r"\.self_attn\.alpha\.",
    "output": r"\.self_attn\.o_proj\.",
    "mlp": r"\.mlp\.",
    "norms": r"\.(input_layernorm|post_attention_layernorm)\.|^norm\.",
    "embeddings": r"^embed_tokens\.",
}
# Decay would pull time scales, gates and the identity conv towards values that mean something else than "small".
NO_DECAY = r"(a_log|dt_bias|skip|conv_weight|bias)$|norm|\.(dt_proj|beta_proj|gate_forward|gate_backward|alpha)\."
_TABLE = {name: re.compile(pattern) for name, pattern in PATTERNS.items()}
_NO_DECAY = re.compile(NO_DECAY)


@dataclass(frozen=True)
class Trainable:
    """One parameter that a stage trains: its name in the student, group, rate, and whether weights decay."""

    name: str
    parameter: nn.Parameter
    group: str
    rate: float
    decays: bool


def group_of(name: str) -> str | None:
    """The group of a decoder parameter by its name below the decoder; None outside all groups."""
    return next((group for group, pattern in _TABLE.items() if pattern.search(name)), None)


def grouped_parameters(student: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter, str]]:
    """(name in the student, parameter, group) of every parameter that a recipe may train; tied ones once."""
    decoder, head = student.get_decoder(), student.get_output_embeddings()
    prefix = next(name for name, module in student.named_modules() if module is decoder)
    prefix = f"{prefix}." if prefix else ""
    head_weights = {id(weight) for weight in head.parameters()} if head is not None else set()
    for name, parameter in student.named_parameters():
        if name.startswith(prefix):
            group = group_of(name.removeprefix(prefix))
        else:
            group = "embeddings" if id(parameter) in head_weights else None
        if group is not None:
            yield name, parameter, group


def set_trainable(student: PreTrainedModel, rates: Mapping[str, float]) -> list[Trainable]:
    """Freeze everything but the groups of `rates` (group -> learning rate above 0); what is trained, in model order.

    A group that this student does not have (Local-Swin of a text-only student) is passed over. Raises InputError when
    nothing is left to train.
    """
    student.requires_grad_(False)
    trainables = []
    for name, parameter, group in grouped_parameters(student):
        if rates.get(group, 0) > 0:
            parameter.requires_grad_(True)
            trainables.append(Trainable(name, parameter, group, rates[group], _NO_DECAY.search(name) is None))
    if not trainables:
        raise InputError(
            "the stage trains nothing",
            got=", ".join(rates) or "no group",
            expected="a group that the student has, at a rate above 0",
        )
    return trainables


def optimizer_groups(trainable: list[Trainable], weight_decay: float) -> list[dict]:
    """Parameter groups for AdamW: one per (group, decays), in the order of the model."""
    groups: dict[tuple[str, bool], dict] = {}
    for item in trainable:
        entry = groups.setdefault(
            (item.group, item.decays),
            {"params": [], "lr": item.rate, "weight_decay": weight_decay if item.decays else 0.0, "name": item.group},
        )
        entry["params"].append(item.parameter)
    return list(groups.values())
