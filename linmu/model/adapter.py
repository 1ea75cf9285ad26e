"""LoRA adapters of a teacher: merged into its weights before it is converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from linmu.errors import InputError
from linmu.formats.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_json_object
from linmu.formats.safetensors_file import read_header

NAME = "default"  # peft's own name of an adapter
MERGE = "merge it with peft where it was trained (merge_and_unload(), save_pretrained()) and convert that folder"


def check_adapter(folder: Path) -> None:
    """Raise InputError unless `folder` is a LoRA adapter as peft saves it, in safetensors."""
    kind = read_json_object(folder / ADAPTER_CONFIG, fix="give a folder with adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise InputError(f"{folder}: peft_type", got=kind, expected="LORA", fix=MERGE)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{folder} has no {ADAPTER_WEIGHTS}", expected="an adapter in safetensors", fix=MERGE)
    read_header(folder / ADAPTER_WEIGHTS)


@torch.no_grad()
def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add a LoRA adapter's products to the weights they stand beside; the same model without adapters.

    Raises InputError when the adapter is of another model, or would be merged in part.
    """
    check_adapter(folder)
    try:
        wrapped = PeftModel(model, PeftConfig.from_pretrained(str(folder)), NAME)
        result: Any = set_peft_model_state_dict(wrapped, load_file(folder / ADAPTER_WEIGHTS), NAME)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:  # sizes, targets and settings of another model
        raise _foreign(folder, error) from error
    absent = sorted(name for name in result.missing_keys if "lora_" in name or f".{NAME}." in name)
    if strange := sorted(result.unexpected_keys):
        raise _foreign(folder, f"{strange[0]} has no place in it ({len(strange)} in all)")
    if absent:
        raise _foreign(folder, f"no {absent[0]} ({len(absent)} in all)")
    merged = wrapped.merge_and_unload()
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    return merged.requires_grad_(True)


def _foreign(folder: Path, got: object) -> InputError:
    return InputError(
        f"the adapter {folder} is not this model's",
        got=got,
        expected="one trained on this very model",
        fix="give the model that its adapter_config.json names",
    )
