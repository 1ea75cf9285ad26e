"""Bundles for TensorRT: real exports of one-layer students, and manifests without files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from linmu.config import MMateConfig
from linmu.export.jetson.bundle import write_bundle
from linmu.formats.manifest import Manifest
from linmu.layout import LAYOUT_SPECS
from linmu.specs import GraphSpec, TensorSpec
from tests import tiny
from tests.bundles import STATES, tiny_manifest
from tests.folders import student_folder

CAPABILITY = "8.6"
ROW = 2 * 4 * 3  # tokens of a window's row in `vision_manifest`


def device_bundle(family: str, root: Path, layers: int = 1) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "LAYERS", layers)
        write_bundle(student_folder(family, root), root / "bundle", preset="none", compile_check=False)
    return root / "bundle"


TILES = {"kind": "tiles", "family": "smolvlm", "tile_size": [64, 64], "tokens_per_tile": 16, "patch": 8, "merge": 2}
GRID = {"kind": "grid", "family": "qwen2_5_vl", "patch": 14, "merge": 2, "window": 4, "resize": {"min_pixels": 3136}}


def vision_graph(vision: dict) -> GraphSpec:
    if vision["kind"] == "tiles":
        inputs = (TensorSpec("pixel_values", "float32", ("tiles", 3, 64, 64)),)
        return GraphSpec("vision.onnx", inputs, (TensorSpec("embeddings", "float32", ("tiles", 16, 30)),))
    inputs = (
        TensorSpec("pixel_values", "float32", ("patches", 1176)),
        TensorSpec("vision.window_slots", "int64", ("windows", 64)),
    )
    return GraphSpec("vision.onnx", inputs, (TensorSpec("embeddings", "float32", ("merged", 30)),))


def vision_manifest(vision: dict, **mmate: object) -> Manifest:
    """A manifest with the inputs that vision families have; no graph stands behind it."""
    manifest = tiny_manifest()
    settings = {"taps": 4, "window_frames": 2, "window_rows": 4, "window_columns": 3, "max_span_frames": 8, **mmate}
    model = replace(manifest.model, family=vision["family"], mmate=MMateConfig.from_json(settings))
    past = tuple(TensorSpec(s.name, s.dtype, (1, *s.shape[1:])) for s in STATES)
    present = tuple(TensorSpec(s.output, s.dtype, (1, *s.shape[1:])) for s in STATES)
    embeds = TensorSpec("inputs_embeds", "float32", (1, "tokens", 30))
    layout = [replace(s, shape=tuple(ROW if dim == "window_tokens" else dim for dim in s.shape)) for s in LAYOUT_SPECS]
    prefill = GraphSpec(
        "prefill.onnx", (embeds, *layout, *past), (TensorSpec("logits", "float32", (1, 1, 11)), *present)
    )
    graphs = {"vision": vision_graph(vision), "prefill": prefill, "step": manifest.graphs["step"]}
    return replace(manifest, model=model, vision=vision, graphs=graphs)
