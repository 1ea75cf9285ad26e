"""Weights stored as FP8 codes become values, code * scale, one at a time, after transformers has read the codes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from linmu.errors import InputError
from linmu.formats.model_files import ModelFolder
from linmu.formats.scaled_weights import Scale


@torch.no_grad()
def apply_scales(model: PreTrainedModel, source: ModelFolder) -> set[str]:
    """Multiply every weight that has a scale, in float32, and round once to the weight's own type.

    Returns the names, as transformers reports unexpected ones, of all scales and of what only rounds activations.
    Raises InputError when a scaled weight is none of the model's.
    """
    rename = _renamer(model)
    parameters = dict(model.named_parameters())
    used = {rename(name) for name in source.scales.runtime}
    scales = {scale.name: (weight, scale) for weight, scale in source.scales.weights.items()}
    for path in source.weights if scales else ():
        with safe_open(path, framework="pt") as file:
            for name in file.keys() & scales.keys():
                weight, scale = scales[name]
                parameter = parameters.get(rename(weight))
                if parameter is None:
                    raise InputError(
                        f"{source.folder} has a scaled weight that its model does not use",
                        got=weight,
                        fix="copy config.json and weights of one and the same model",
                    )
                parameter.data = scaled(parameter.data, file.get_tensor(name), scale)
                used.add(rename(name))
    return used


def scaled(codes: Tensor, scale: Tensor, rule: Scale) -> Tensor:
    """Codes [rows, columns] times their scales, each worth a block; of the codes' dtype."""
    rows, columns = codes.shape
    blocks = scale.float().reshape(-(-rows // rule.block[0]), -(-columns // rule.block[1]))
    spread = blocks.repeat_interleave(rule.block[0], 0)[:rows].repeat_interleave(rule.block[1], 1)[:, :columns]
    return (codes.float() * spread).to(codes.dtype)


def _renamer(model: PreTrainedModel) -> Callable[[str], str]:
    """How transformers names a checkpoint's tensor inside this model (older checkpoints have other prefixes)."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    names = model.state_dict()

    def rename(name: str) -> str:
        return rename_source_key(name, renamings, converters, model.base_model_prefix, names)[0]

    return rename
