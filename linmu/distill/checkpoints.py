"""Checkpoints that exist whole or not at all, and hold trained weights only."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from linmu.errors import InputError

WEIGHTS = "trained.safetensors"
PARTIAL = "partial"
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_step(path: Path) -> int:
    """The step a checkpoint folder is named after, -1 for another name."""
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else -1


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if checkpoint_step(path) >= 0]
    return max(checkpoints, key=checkpoint_step, default=None)


def publish(folder: Path, step: int, keep: int) -> Path:
    """Give the checkpoint written under `folder`/partial its name, flushed to disk first, and drop older ones."""
    source, target = folder / PARTIAL / f"checkpoint-{step}", folder / f"checkpoint-{step}"
    for path in source.iterdir():
        _flush(path)
    _flush(source)
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)
    _flush(folder)
    older = sorted((path for path in folder.glob("checkpoint-*")), key=checkpoint_step)[:-keep]
    for path in older:
        # renamed before it is emptied: a kill in between must not leave half a checkpoint under a valid name
        doomed = folder / PARTIAL / f"old-{path.name}"
        path.rename(doomed)
        shutil.rmtree(doomed)
    return target


def clear_partial(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)


def save_trained(module: nn.Module, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write every parameter that is trained; `state`: a whole state dict where the module's own is sharded."""
    wrapped = "_fsdp_wrapped_module."
    names = [name.replace(wrapped, "") for name, weight in module.named_parameters() if weight.requires_grad]
    parameters = dict(module.named_parameters()) if state is None else state
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: parameters[name].detach().contiguous().cpu() for name in names}, folder / WEIGHTS)


def load_trained(module: nn.Module, folder: Path) -> None:
    """Read back `save_trained`; raises InputError when the names or shapes are other ones."""
    stored = load_file(folder / WEIGHTS)
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if stored.keys() != parameters.keys() or any(stored[name].shape != parameters[name].shape for name in parameters):
        raise InputError(
            f"{folder} belongs to another student or recipe",
            got=f"{len(stored)} trained tensors",
            expected=f"{len(parameters)} of this stage",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
