"""Weights stored as codes and scales: which of them are a value each, and the refusal of all others by name (no torch).

Carried: E4M3 codes with a scale beside them, value = code * scale. NVIDIA Model Optimizer's FP8 has `weight_scale` of
a matrix or of each row, fine-grained FP8 (DeepSeek's and Qwen's) has `weight_scale_inv` of each block of 128 x 128.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from linmu.errors import InputError
from linmu.formats.safetensors_file import TensorEntry

CODES = "F8_E4M3"
SCALES = ("_scale", "_scale_inv")  # behind a weight's name
BLOCK = (128, 128)  # where quantization_config does not say
# What rounds activations and caches while a quantized model runs; the weights' values do not depend on it.
RUNTIME = ("input_scale", "output_scale", "activation_scale", "k_scale", "v_scale", "q_scale", "kv_scale")
_CONFIGS = ("quantization_config", "compression_config", "quantization")
DEQUANTIZE = (
    "convert the model it was quantized from; or load it with transformers where its library works, call "
    "dequantize() and save_pretrained(), and convert that"
)


@dataclass(frozen=True)
class Scale:
    """The scale [rows, columns] of a matrix of codes; each is worth `block` elements."""

    name: str
    block: tuple[int, int]


@dataclass(frozen=True)
class Scales:
    """Scales by the name of their weight, and names of what only rounds activations and caches."""

    weights: Mapping[str, Scale]
    runtime: tuple[str, ...]


NO_SCALES = Scales({}, ())


def check_quantization(config: Mapping[str, Any], extra: Mapping[str, Any], place: Path) -> None:
    """Raise InputError for a config.json (and hf_quant_config.json, `extra`) of a method that is not carried."""
    text = config.get("text_config")
    parts = [config, *([text] if isinstance(text, dict) else []), *([extra] if extra else [])]
    for part in parts:
        settings = next((part[name] for name in _CONFIGS if part.get(name)), None)
        if settings is None:
            continue
        if not isinstance(settings, dict):
            raise InputError(f"{place}: quantization_config", got=type(settings).__name__, expected="a JSON object")
        method = str(settings.get("quant_method") or ("modelopt" if part is extra else "unknown")).lower()
        algorithm = str(
            settings.get("quant_algo") or (settings.get("quantization") or {}).get("quant_algo") or ""
        ).upper()
        if method == "bitsandbytes" or settings.get("load_in_4bit") or settings.get("load_in_8bit"):
            method = "bitsandbytes"
        if method == "fp8" or (method == "modelopt" and algorithm == "FP8"):
            continue
        raise InputError(
            f"{place.parent} is quantized",
            got=f"{method} {algorithm}".strip(),
            expected="weights in float32, float16, bfloat16 or FP8 (E4M3 with scales)",
            fix=DEQUANTIZE,
        )


def match_scales(tensors: Mapping[str, TensorEntry], block: Any, place: Path) -> Scales:
    """Match scales with weights of one checkpoint; `block` is quantization_config's weight_block_size or None.

    Raises InputError, naming the tensor, for codes or scales of another kind.
    """
    weights: dict[str, Scale] = {}
    taken: set[str] = set()
    for name, entry in tensors.items():
        beside = [f"{name}{suffix}" for suffix in SCALES if f"{name}{suffix}" in tensors]
        if not beside:
            continue
        taken |= set(beside)
        if entry.dtype != CODES or len(beside) > 1 or f"{name}_scale_2" in tensors:
            raise _unknown(place, beside[0], f"beside {name} of dtype {entry.dtype}")
        weights[name] = Scale(beside[0], _block_of(entry.shape, tensors[beside[0]].shape, block, place, beside[0]))
    runtime = tuple(name for name in tensors if name.rpartition(".")[2] in RUNTIME)
    for name in tensors:
        last = name.rpartition(".")[2]
        if last.endswith(("_packed", "weight_scale", "weight_scale_inv", "weight_scale_2")) and name not in taken:
            raise _unknown(place, name, "without the weight it belongs to")
        if last in ("qweight", "qzeros", "scales", "g_idx", "absmax", "quant_map", "SCB", "weight_shape"):
            raise _unknown(place, name, "of another method")
    return Scales(weights, runtime)


def _block_of(shape: tuple[int, ...], scale: tuple[int, ...], block: Any, place: Path, name: str) -> tuple[int, int]:
    """Elements that one scale is worth: the whole matrix, a row, or a block."""
    if len(shape) == 2:
        rows, columns = shape
        if all(size == 1 for size in scale):
            return rows, columns
        if scale in ((rows,), (rows, 1)):
            return 1, columns
        size = tuple(block) if isinstance(block, list | tuple) and len(block) == 2 else BLOCK
        if all(type(n) is int and n > 0 for n in size) and scale == (ceil(rows / size[0]), ceil(columns / size[1])):
            return size[0], size[1]
    raise _unknown(place, name, f"shape {list(scale)} for a weight of shape {list(shape)}")


def _unknown(place: Path, name: str, got: str) -> InputError:
    return InputError(
        f"{place}: the quantized tensor {name}",
        got=got,
        fix=DEQUANTIZE,
        expected="E4M3 codes with a scale per matrix, row or block",
    )
