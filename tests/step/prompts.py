"""Graph-level inputs of a student's prompt, taken from the student's own forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from linmu.layout import PromptLayout, layout_tensors, media_from_grids, prompt_layout
from linmu.step.form import DecoderForm


@dataclass(frozen=True)
class GraphPrompt:
    """Inputs of the step form's prefill (numpy) and the student's output on the same prompt."""

    embeds: np.ndarray
    positions: np.ndarray
    layout: dict[str, np.ndarray] | None
    deepstack: np.ndarray | None
    next_position: int
    output: object


def run_student(student, inputs: dict, form: DecoderForm, row: int | None = None) -> GraphPrompt:
    """Run the student on one prompt and catch what its decoder got; `row`: length of window rows."""
    seen: dict = {}
    decoder = student.get_decoder()
    hooks = [
        decoder.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(x=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        ),
        decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True),
    ]
    with torch.no_grad():
        output = student(**inputs, use_cache=True)
    for hook in hooks:
        hook.remove()
    ids = inputs["input_ids"][0].numpy()
    if form.vision:
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        media = media_from_grids(student._prompt_rules, ids, *(inputs.get(name) for name in names))
        placed = prompt_layout(student._prompt_rules, ids, media, form.mmate.max_span_frames)
    else:
        placed = PromptLayout(len(ids), (), np.arange(len(ids))[None], len(ids))
    layout = layout_tensors(placed, form.mmate, never_empty=True, row=row) if form.vision else None
    deepstack = None
    if form.deepstack:
        deepstack = np.zeros((form.deepstack, *seen["x"].shape), seen["x"].detach().numpy().dtype)
        for i, features in enumerate(seen.get("deepstack_visual_embeds") or ()):
            deepstack[i, 0, seen["visual_pos_masks"][0].numpy()] = features.detach().numpy()
    positions = placed.position_ids[:, None] if form.rope_axes == 3 else placed.position_ids
    return GraphPrompt(seen["x"].detach().numpy(), positions, layout, deepstack, placed.next_position, output)


def torch_layout(layout: dict[str, np.ndarray] | None) -> dict[str, torch.Tensor] | None:
    """The layout tensors as the step form takes them."""
    return None if layout is None else {n.removeprefix("layout."): torch.from_numpy(x) for n, x in layout.items()}


def step_positions(form: DecoderForm, position: int) -> torch.Tensor:
    """position_ids of one decode step."""
    return torch.full((3, 1, 1) if form.rope_axes == 3 else (1, 1), position)


def worst(actual, expected) -> float:
    """Largest absolute difference over the largest expected magnitude; NaN counts as infinite."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    gap = np.abs(actual - expected).max()
    return float("inf") if np.isnan(gap) else float(gap / max(np.abs(expected).max(), 1e-9))
