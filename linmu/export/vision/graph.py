"""`vision.onnx`: pixels -> embeddings of one call, captured from the tower of linmu/reference/vision.py."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from linmu.errors import InputError
from linmu.export.vision import passes
from linmu.reference.half_tower import HalfProducts
from linmu.reference.vision import example_call, tower_arguments
from linmu.reference.vision_towers import VisionTower
from linmu.specs import GraphSpec

OPSET = 20
PRECISIONS = ("fp32", "fp16")


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
    arguments = tower_arguments(tower, example or example_call(tower))
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


def _dynamic_shapes(tower: VisionTower) -> tuple[dict[int, Any], ...]:
    """One entry per input; patches are a whole number of merged tokens, which the capture must know."""
    merged = torch.export.Dim("merged", min=1)
    dims = {
        "patches": tower.facts["merge"] ** 2 * merged,
        "windows": torch.export.Dim("windows", min=1),
        "tiles": torch.export.Dim("tiles", min=1),
    }
    return tuple({axis: dims[d] for axis, d in enumerate(spec.shape) if isinstance(d, str)} for spec in tower.inputs)
