"""Vision towers as they are exported, run eagerly: what `vision.onnx` is held to.

One call is T tiles of one size, or one grid frame of any size (Qwen; a video is one call per grid frame, since these
towers never attend across frames). Index tensors come from linmu/layout/vision_grid.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from linmu.errors import InputError
from linmu.layout.vision_grid import vision_facts, vision_inputs
from linmu.reference.half_tower import HalfProducts
from linmu.reference.vision_tiles import TILE_PARTS, TileTower
from linmu.reference.vision_towers import Qwen3Tower, Qwen25Tower, VisionTower
from linmu.specs import TensorSpec

GRID_TOWERS = {"qwen2_5_vl": Qwen25Tower, "qwen3_vl": Qwen3Tower}


def build_vision(model: nn.Module, family: str) -> VisionTower:
    """The export form of a model's vision tower; shares the model's modules and weights.

    `model` is the transformers model (with or without its language head). Raises InputError for text-only families
    for a LLaVA tower that is neither CLIP nor Dinov2, and for a tower that is not float32.
    """
    facts = vision_facts(model.config.to_dict(), family)
    inner = getattr(model, "model", model)
    if facts["kind"] == "grid":
        tower = GRID_TOWERS[family](inner.visual, facts)
    else:
        tower = TileTower(TILE_PARTS[family](inner, model.config, tuple(facts["tile_size"])), facts)
    if wrong := sorted({str(p.dtype) for p in tower.parameters()} - {"torch.float32"}):
        raise InputError(
            "dtype of the vision tower", got=", ".join(wrong), expected="torch.float32", fix="model.float()"
        )
    return tower.eval()


def run_tower(
    tower: VisionTower, call: Mapping[str, Any], half_products: bool = False, reordered: bool = False
) -> dict[str, torch.Tensor]:
    """Run one call eagerly: inputs by graph name (numpy or torch) -> outputs by graph name.

    half_products: matrix products in half precision (linmu.reference.half_tower); reordered: those summed otherwise.
    """
    with torch.no_grad(), HalfProducts(reordered) if half_products else nullcontext():
        result = tower(*tower_arguments(tower, call))
    values = result if isinstance(result, tuple) else (result,)
    return {spec.name: value for spec, value in zip(tower.outputs, values, strict=True)}


def example_call(tower: VisionTower, seed: int = 0) -> dict[str, np.ndarray]:
    """A call with random pixels whose symbolic sizes are all at least 2 and differ; ragged windows where there are."""
    facts = tower.facts
    merge = facts["merge"]
    grid = (1, ((facts.get("window") or 2) + 1) * merge, 5 * merge)
    indices = vision_inputs(facts["family"], facts, grid)
    sizes = {"tiles": 2, "patches": grid[1] * grid[2]}
    shape = [sizes[size] if isinstance(size, str) else size for size in tower.inputs[0].shape]
    pixels = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return {"pixel_values": pixels, **indices}


def tower_arguments(tower: VisionTower, call: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """A call's tensors in the order of the graph's inputs; raises InputError on a wrong name, dtype or shape."""
    names = [spec.name for spec in tower.inputs]
    if set(call) != set(names):
        raise InputError("inputs of a vision call", got=sorted(call), expected=names)
    return tuple(_checked(spec, torch.as_tensor(call[spec.name])) for spec in tower.inputs)


def _checked(spec: TensorSpec, tensor: torch.Tensor) -> torch.Tensor:
    dtype = str(tensor.dtype).removeprefix("torch.")
    matches = len(spec.shape) == tensor.ndim and all(
        isinstance(want, str) or want == have for want, have in zip(spec.shape, tensor.shape, strict=True)
    )
    if dtype != spec.dtype or not matches:
        got, expected = f"{dtype} {tuple(tensor.shape)}", f"{spec.dtype} {spec.shape}"
        raise InputError(f"vision input {spec.name!r}", got=got, expected=expected)
    return tensor
