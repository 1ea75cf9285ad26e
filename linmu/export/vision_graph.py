"""`vision.onnx`: pixels -> embeddings of one call, and its eager twin.

One call is T tiles of one size, or one grid frame of any size (Qwen; a video is one call per grid frame, since these
towers never attend across frames). Index tensors come from linmu/layout/vision_grid.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from linmu.errors import InputError
from linmu.export import vision_passes as passes
from linmu.export.half_tower import HalfProducts
from linmu.export.vision_tiles import TILE_PARTS, TileTower
from linmu.export.vision_towers import Qwen3Tower, Qwen25Tower, VisionTower
from linmu.layout.vision_grid import vision_facts, vision_inputs
from linmu.specs import GraphSpec, TensorSpec

OPSET = 20
PRECISIONS = ("fp32", "fp16")
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

    half_products: matrix products in half precision (linmu.export.half_tower); reordered: those summed otherwise.
    """
    with torch.no_grad(), HalfProducts(reordered) if half_products else nullcontext():
        result = tower(*_arguments(tower, call))
    values = result if isinstance(result, tuple) else (result,)
    return {spec.name: value for spec, value in zip(tower.outputs, values, strict=True)}


def embed_call(model: nn.Module, family: str, call: Mapping[str, Any]) -> torch.Tensor:
    """The eager twin of the graph: embeddings [merged, D] or [tiles, tokens, D] of one call (`run_tower` for all)."""
    return run_tower(build_vision(model, family), call)["embeddings"]


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


def export_vision(
    tower: VisionTower,
    path: Path,
    example: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    *,
    opset: int = OPSET,
    half_products: bool = False,
) -> GraphSpec:
    """Write `path` (vision.onnx) and its weights beside it (vision.data); returns its inputs and outputs.

    `example`: a call to capture with, every symbolic size at least 2 (default: `example_call`).
    `precision` "fp16" stores weights in half precision; `half_products` also multiplies matrices in it.
    """
    if precision not in PRECISIONS:
        raise InputError("vision precision", got=repr(precision), expected="one of " + ", ".join(PRECISIONS))
    path = Path(path)
    arguments = _arguments(tower, example or example_call(tower))
    with HalfProducts() if half_products else nullcontext():
        model = _capture(tower, arguments, opset)
    passes.name_dimensions(model, tower.inputs, tower.outputs)
    passes.name_nodes(model)
    passes.strip_metadata(model)
    if precision == "fp16":
        passes.store_weights_fp16(model)
    passes.save_with_data(model, path)
    return GraphSpec(path.name, tower.inputs, tower.outputs)


def _capture(tower: VisionTower, arguments: tuple[torch.Tensor, ...], opset: int) -> ir.Model:
    with torch.no_grad(), warnings.catch_warnings():
        # One dimension has one name; that two inputs share it is meant. The other is torch's own, about its pytree.
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        program = torch.onnx.export(
            tower,
            arguments,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=_dynamic_shapes(tower),
            input_names=[spec.name for spec in tower.inputs],
            output_names=[spec.name for spec in tower.outputs],
            verbose=False,
        )
    return program.model


def _arguments(tower: VisionTower, call: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
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


def _dynamic_shapes(tower: VisionTower) -> tuple[dict[int, Any], ...]:
    """One entry per input; patches are a whole number of merged tokens, which the capture must know."""
    merged = torch.export.Dim("merged", min=1)
    dims = {
        "patches": tower.facts["merge"] ** 2 * merged,
        "windows": torch.export.Dim("windows", min=1),
        "tiles": torch.export.Dim("tiles", min=1),
    }
    return tuple({axis: dims[d] for axis, d in enumerate(spec.shape) if isinstance(d, str)} for spec in tower.inputs)
