"""What of a GGUF file is carried into a teacher: everything that transformers reads, and the rotary scaling it ignores.

transformers skips tensors and metadata that it does not know. So every tensor and every key of the architecture must
be one that is known here, or the file is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from linmu.errors import InputError
from linmu.formats.gguf_file import GgufHeader, read_gguf

FLOAT32 = 0  # ggml type
ROPE_FREQS = "rope_freqs.weight"
SAFETENSORS = "convert the safetensors folder of the same model"
# Of every `ARCHITECTURE.` key; rotary scaling is read by `rope_scaling`.
_READ = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.attn_factor",
    "rope.scale_linear",
)
_LAYER = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
_EXTRA = {
    "llama": (),
    "qwen2": ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
    "qwen3": ("attn_q_norm.weight", "attn_k_norm.weight"),
}
# Llama 3.1 and its successors: low and high frequency factor, and the length of its first training.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def check_gguf(path: Path, header: GgufHeader, architecture: str) -> None:
    """Raise InputError, naming the key or tensor, when the file holds something that a teacher would not get."""
    metadata = header.metadata
    _check_numbers(path, metadata, architecture)
    if metadata.get("split.count", 0) > 1:
        raise InputError(
            f"{path} is one part of several",
            got=f"split.count {metadata['split.count']}",
            expected="one whole file",
            fix="join the parts: llama-gguf-split --merge",
        )
    if metadata.get("general.type", "model") != "model":
        raise InputError(
            f"{path} is no model",
            got=f"general.type {metadata['general.type']}",
            expected="model",
            fix="give the model's own file; adapters as safetensors, with --adapter",
        )
    own = re.compile(re.escape(architecture) + r"\.(.+)")
    for key in (*metadata, *header.arrays):
        if (match := own.fullmatch(key)) is None or metadata.get(key, True) in (0, "", "none"):
            continue
        if match[1] not in _READ or key in header.arrays:
            raise InputError(f"{path}: metadata that linmu does not carry", got=key, fix=SAFETENSORS)
    known = {"token_embd.weight", "output.weight", "output_norm.weight", ROPE_FREQS}
    for index in range(min(int(metadata.get(f"{architecture}.block_count", 0)), len(header.tensors))):
        layer = [f"{name}.weight" for name in _LAYER] + list(_EXTRA[architecture])
        known |= {f"blk.{index}.{name}" for name in layer}
    if strange := sorted(set(header.tensors) - known):
        raise InputError(
            f"{path}: tensors that a {architecture} model has not",
            fix=SAFETENSORS,
            got=f"{strange[0]} ({len(strange)} in all)",
        )
    _check_head(path, metadata, architecture)


def _check_numbers(path: Path, metadata: Mapping[str, Any], architecture: str) -> None:
    """Every value that is read as a number is a finite one."""
    names = [f"{architecture}.{name}" for name in _READ if name != "rope.scaling.type"]
    for key in ("split.count", *names):
        value = metadata.get(key, 0)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError(f"{path}: {key}", got=repr(value), expected="a number", fix=SAFETENSORS)


def config_changes(path: Path) -> dict[str, Any]:
    """What a config read from the file lacks: head_dim, and rope_parameters without rope_theta.

    Raises InputError for rotary scaling that cannot be carried exactly.
    """
    header = read_gguf(path)
    architecture = str(header.metadata["general.architecture"])
    changes: dict[str, Any] = {}
    if head := header.metadata.get(f"{architecture}.attention.key_length"):
        changes["head_dim"] = int(head)
    if scaling := rope_scaling(path, header, architecture):
        changes["rope_parameters"] = scaling
    return changes


def rope_scaling(path: Path, header: GgufHeader, architecture: str) -> dict[str, Any] | None:
    """Rotary scaling in transformers' words (rope_type and its parameters), None where there is none."""

    def value(name: str) -> Any:
        return header.metadata.get(f"{architecture}.rope.{name}")

    kind = value("scaling.type") or "none"
    factor = value("scaling.factor") or value("scale_linear") or 1.0
    if value("scaling.attn_factor") not in (None, 1.0) or kind not in ("none", "linear"):
        got = f"{kind} {factor:g}" if kind not in ("none", "linear") else f"attn_factor {value('scaling.attn_factor')}"
        raise InputError(f"{path}: rope.scaling", got=got, expected="none or linear", fix=SAFETENSORS)
    if ROPE_FREQS not in header.tensors:
        return {"rope_type": "linear", "factor": float(factor)} if factor != 1.0 else None
    if factor != 1.0:
        raise InputError(
            f"{path}: two kinds of rotary scaling", got=f"{ROPE_FREQS} and factor {factor:g}", fix=SAFETENSORS
        )
    return _llama3(path, header, float(value("freq_base") or 10000.0))


def _llama3(path: Path, header: GgufHeader, base: float) -> dict[str, Any] | None:
    """The parameters behind the divisors of every frequency, if Llama 3.1's rule makes exactly these divisors."""
    tensor = header.tensors[ROPE_FREQS]
    if tensor.kind != FLOAT32:
        raise InputError(f"{path}: {ROPE_FREQS}", got=f"ggml type {tensor.kind}", expected="float32", fix=SAFETENSORS)
    divisors = np.fromfile(path, "<f4", tensor.elements, offset=tensor.start)
    if (divisors == 1).all():
        return None
    scaling = {"rope_type": "llama3", "factor": round(float(divisors.max()), 4), **_LLAMA3}
    if not np.allclose(divisors, llama3_divisors(len(divisors), base, scaling), rtol=1e-5, atol=0):
        raise InputError(
            f"{path}: {ROPE_FREQS}",
            got="divisors by another rule",
            expected="those of Llama 3.1's scaling",
            fix=SAFETENSORS,
        )
    return scaling


def llama3_divisors(count: int, base: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """What Llama 3.1 divides each of `count` rotary frequencies by, float64."""
    turns = scaling["original_max_position_embeddings"] * base ** (-np.arange(count) / count) / (2 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)  # of the plain frequency
    return 1 / ((1 - share) / scaling["factor"] + share)


def _check_head(path: Path, metadata: Mapping[str, Any], architecture: str) -> None:
    """Queries, keys and values of one size, all of it rotated."""

    def value(name: str) -> int:
        return int(metadata.get(f"{architecture}.{name}", 0))

    heads = value("attention.head_count")
    head = value("attention.key_length") or (value("embedding_length") // heads if heads else 0)
    for name in ("attention.value_length", "rope.dimension_count"):
        if head and value(name) not in (0, head):
            raise InputError(
                f"{path}: {architecture}.{name}",
                got=value(name),
                expected=f"{head}, the size of a head",
                fix=SAFETENSORS,
            )
