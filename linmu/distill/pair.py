"""Teacher and student side by side: loading, checking that they belong together, sharing what is equal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from linmu.errors import InputError
from linmu.families import STUDENT_PREFIX
from linmu.formats.model_files import read_model_folder, read_student_config
from linmu.model.folders import load_teacher

TOLERANCE = 2e-2  # of the largest weight: a student stored in a narrower type is still its teacher's
_MIXER = ".self_attn."


def check_folders(student: Path, teacher: Path) -> None:
    """Raise InputError unless both are model folders of one family (files only, no weights are read)."""
    family = str(read_student_config(student)["model_type"]).removeprefix(STUDENT_PREFIX)
    teacher_family = read_model_folder(teacher).family.name
    if teacher_family != family:
        raise InputError(
            f"the teacher {teacher} is of another family",
            got=teacher_family,
            expected=family,
            fix="give the model that the student was converted from",
        )


def load_guide(teacher: Path, bf16: bool) -> PreTrainedModel:
    """The teacher, frozen, on the CPU: in float32 or, with `bf16`, in its own type unless that is float16.

    Half precision of both kinds meets in no operation.
    """
    model = load_teacher(read_model_folder(teacher), "auto" if bf16 else "float32")
    return (model.float() if model.dtype == torch.float16 else model).requires_grad_(False)


def check_pair(student: nn.Module, teacher: nn.Module) -> None:
    """Raise InputError unless the student was converted from this teacher.

    Every weight outside the mixers must have its counterpart, and what comes before the decoder's layers (vision
    tower, embeddings) must be the same: it runs once for both.
    """
    theirs, layers = dict(teacher.named_parameters()), _layer_prefix(student)
    ours = {name: weight for name, weight in student.named_parameters() if _MIXER not in name or layers not in name}
    expected = {name for name in theirs if _MIXER not in name or layers not in name}
    wrong = sorted(expected ^ ours.keys()) or [n for n in sorted(ours) if ours[n].shape != theirs[n].shape]
    if wrong:
        raise InputError(
            "the student is not this teacher's",
            got=f"{wrong[0]} differs ({len(wrong)} in all)",
            fix="give the model that the student was converted from",
        )
    for name, weight in ours.items():
        if layers not in name and "norm" not in name and not _close(weight, theirs[name]):
            raise InputError(
                "the student is not this teacher's",
                got=f"{name} has other values",
                expected="vision tower and embeddings as the teacher's",
            )


def share_weights(student: nn.Module, teacher: nn.Module) -> int:
    """Let frozen weights of the student that equal the teacher's use the teacher's memory; returns bytes saved.

    Weights that are trained get memory of their own.
    """
    theirs, saved = dict(teacher.named_parameters()), 0
    own_pointers = {weight.data_ptr() for weight in theirs.values()}
    for name, weight in student.named_parameters():
        twin = theirs.get(name.replace(".base_layer.", "."))
        shared = weight.data_ptr() in own_pointers
        if weight.requires_grad and shared:
            weight.data = weight.data.clone()
        elif not weight.requires_grad and twin is not None and not shared and _equal(weight, twin):
            weight.data = twin.data
            saved += weight.numel() * weight.element_size()
    return saved


def own_memory(weights: Iterable[nn.Parameter], teacher: nn.Module) -> None:
    """Give weights that use the teacher's memory their own again."""
    pointers = {weight.data_ptr() for weight in teacher.parameters()}
    for weight in weights:
        if weight.data_ptr() in pointers:
            weight.data = weight.data.clone()


def _layer_prefix(model: PreTrainedModel | nn.Module) -> str:
    layers = model.get_decoder().layers
    return next(name for name, module in model.named_modules() if module is layers) + "."


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.float(), b.float()
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max())
