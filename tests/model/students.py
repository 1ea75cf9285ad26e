"""Tiny students of every family whose new parameters are noisy, so that a forgotten one shows."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from linmu.config import MMateConfig
from linmu.conversion.convert import convert
from linmu.model.modeling import decoder_layers
from tests.tiny import FAMILY_NAMES, VISION_NAMES, tiny_inputs, tiny_model

SMALL = {"window_frames": 2, "window_rows": 2, "window_columns": 2, "chunk_size": 16}
NEW = ("scan_forward.", "scan_backward.", "gate_forward.", "gate_backward.", "alpha.", "swin.")


def new_parameters(model) -> dict[str, torch.nn.Parameter]:
    """What a student has and its teacher has not."""
    return {
        f"{index}.{name}": value
        for index, layer in enumerate(decoder_layers(model))
        for name, value in layer.self_attn.named_parameters()
        if name.startswith(NEW)
    }


def unsettle(model, seed: int = 1, noise: float = 0.2) -> None:
    """Noise on all new parameters: no identity conv, no constant decay or gate is left."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in new_parameters(model).values():
            value.add_(noise * torch.randn(value.shape, generator=generator))


def fresh_student(family: str, probe: str | None = None, seed: int = 0, **settings: Any):
    """(student, tokenizer) of its own; `probe` names the kind of inputs that conversion looks at."""
    teacher, tokenizer = tiny_model(family, seed)
    inputs = tiny_inputs(family, teacher, tokenizer, probe) if probe else None
    student = convert(teacher, MMateConfig(**{**SMALL, **settings}), inputs)
    unsettle(student)
    return student, tokenizer


@cache
def shared_student(family: str, **settings: Any):
    """(student, tokenizer) that several tests read and none changes."""
    return fresh_student(family, "image" if family in VISION_NAMES else None, **settings)


def cases() -> list[tuple[str, str]]:
    """(family, kind of prompt): text and an image everywhere, a video where the family has its own."""
    kinds = {family: ["text"] + ["two_images"] * (family in VISION_NAMES) for family in FAMILY_NAMES}
    for family in ("qwen2_5_vl", "qwen3_vl"):
        kinds[family].append("video")
    return [(family, kind) for family, found in kinds.items() for kind in found]


def prompt_of(family: str, kind: str, **settings: Any):
    """(student, tokenizer, inputs)."""
    student, tokenizer = shared_student(family, **settings)
    return student, tokenizer, tiny_inputs(family, student, tokenizer, kind)


def left_padded(rows: list[Tensor], pad: int = 0) -> tuple[Tensor, Tensor]:
    """(ids [B,S], attention mask [B,S]) of prompts [1,S_i]."""
    length = max(row.shape[1] for row in rows)
    ids = torch.full((len(rows), length), pad, dtype=rows[0].dtype)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, length - row.shape[1] :] = row[0]
        mask[number, length - row.shape[1] :] = 1
    return ids, mask
