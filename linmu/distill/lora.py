"""LoRA adapters on the decoder's MLPs and mixers' output projections, put on before a stage and merged after it."""

from __future__ import annotations

import re

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import nn
from transformers import PreTrainedModel

from linmu.distill.recipe import Lora
from linmu.model.modeling import decoder_layers

ADAPTER = "default"


def target_modules(student: PreTrainedModel, lora: Lora) -> list[str]:
    """Full names of the linear layers that get adapters: never the vision tower, the head or a mixer's insides."""
    targets: set[int] = set()
    for layer in decoder_layers(student):
        if "mlp" in lora.targets:
            targets |= {id(module) for module in layer.mlp.modules() if isinstance(module, nn.Linear)}
        if "output" in lora.targets:
            targets.add(id(layer.self_attn.o_proj))
    return [name for name, module in student.named_modules() if id(module) in targets]


def add_adapters(student: PreTrainedModel, lora: Lora, seed: int) -> LoraModel:
    """Put adapters into the student, in place; the result of `merge_adapters` is the same student without them."""
    pattern = "|".join(map(re.escape, target_modules(student, lora)))
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, bias="none", target_modules=pattern)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LoraModel(student, config, ADAPTER)


def adapted_weights(adapters: LoraModel) -> list[nn.Parameter]:
    """The weights that adapters stand beside."""
    return [module.get_base_layer().weight for module in adapters.modules() if isinstance(module, LoraLayer)]


def merge_adapters(adapters: LoraModel) -> PreTrainedModel:
    """Add the adapters' products to the weights they stand beside and take them out: a plain student again."""
    return adapters.merge_and_unload()
