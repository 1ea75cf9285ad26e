"""The inputs of the golden vectors, built by the same rules when they are written and when they are checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from linmu.formats.manifest import Manifest
from linmu.layout import MediaGrid, layout_tensors
from linmu.processing import ModelInputs, Processor
from linmu.runtimes.base import PromptPiece
from linmu.runtimes.prompt import PlacedPrompt, place_prompt, window_row
from linmu.verification.golden import TEXT_PROMPT, Projector, seeded_normal

GRIDS = ((1, 3, 5), (1, 2, 4))  # tokens; families of any image size
TEXT_PARTS = (5, 9)  # text in front of the first and of the second picture


def text_ids(processor: Processor) -> np.ndarray:
    """Ids [S] int64 of the text prompt."""
    return processor.encode(TEXT_PROMPT).input_ids.astype(np.int64)


def picture_inputs(processor: Processor, manifest: Manifest) -> ModelInputs:
    """Text, a picture, text, another picture, text: ids and grids (no pixels)."""
    rules = manifest.model.prompt_rules
    grids = GRIDS if rules.facts.vision == "grid" else (rules.tile,) * 2
    first, second, third = np.split(text_ids(processor), TEXT_PARTS)
    pictures = [np.full(int(np.prod(grid)), rules.image_token_id, np.int64) for grid in grids]
    ids = np.concatenate([first, pictures[0], second, pictures[1], third])
    return inputs_of(ids, np.array(grids, np.int64))


def inputs_of(input_ids: np.ndarray, grids: np.ndarray) -> ModelInputs:
    """ModelInputs of stored ids [S] and grids [n, 3], an image each."""
    media = tuple(MediaGrid("image", ((int(t), int(h), int(w)),)) for t, h, w in grids)
    return ModelInputs(input_ids, "", media)


def golden_piece(inputs: ModelInputs, manifest: Manifest, embeds: np.ndarray, label: str):
    """(the one prefill call of a prompt with embeddings [S, D], where it was placed); deepstack is seeded."""
    placed: PlacedPrompt = place_prompt(inputs, manifest)
    spec = next((spec for spec in manifest.graphs["prefill"].inputs if spec.name == "deepstack"), None)
    vision, deepstack = vision_rows(placed), None
    if spec is not None:
        deepstack = np.zeros((int(spec.shape[0]), 1, *embeds.shape), np.float32)
        values = seeded_normal(f"{label}.deepstack", (len(deepstack), len(vision), embeds.shape[1]))
        deepstack[:, 0, vision] = values * np.float32(0.5) * embeds.std()
    layout: dict[str, np.ndarray] = {}
    if any(spec.name == "layout.vision" for spec in manifest.graphs["prefill"].inputs):
        row = window_row(manifest)
        layout = layout_tensors(placed.layout, manifest.model.mmate, never_empty=True, row=row)
    return PromptPiece(embeds[None], placed.layout.position_ids, layout, deepstack, 0), placed


def vision_rows(placed: PlacedPrompt) -> np.ndarray:
    """Ascending indices of a prompt's vision tokens."""
    return np.sort(np.concatenate([span.positions for span in placed.layout.spans] or [np.zeros(0, np.int64)]))


def vision_call(facts: dict[str, Any]) -> dict[str, np.ndarray]:
    """One call of the vision graph with seeded pixels: two tiles, or one grid with ragged windows."""
    if facts["kind"] == "tiles":
        return {"pixel_values": seeded_normal("pixels", (2, facts["channels"], *facts["tile_size"]))}
    merge = facts["merge"]
    grid = (1, ((facts.get("window") or 2) + 1) * merge, 5 * merge)
    width = facts["channels"] * facts["temporal_patch"] * facts["patch"] ** 2
    pixels = seeded_normal("pixels", (grid[1] * grid[2], width))
    return {"pixel_values": pixels, "grid": np.array(grid, np.int64)}


def pixel_print(call: dict[str, np.ndarray], projector: Projector) -> dict[str, Any]:
    """What is stored of one preprocessed call: shape, projections and norm of its pixels."""
    pixels = call["pixel_values"]
    projection, norm = projector.rows(pixels.reshape(1, -1))
    return {"shape": list(pixels.shape), "projection": projection[0].tolist(), "norm": float(norm[0])}
