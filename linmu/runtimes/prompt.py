"""ModelInputs -> consecutive prefill pieces: embeddings with vision features put in, positions, layout tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from linmu.errors import BundleError, InputError
from linmu.families import get_family
from linmu.formats.manifest import Manifest
from linmu.layout import PromptLayout, layout_tensors, pieces, prompt_layout
from linmu.processing import ModelInputs
from linmu.runtimes.base import PromptPiece, Runner
from linmu.runtimes.vision_rows import VisionRows

MAX_PIECE_TOKENS = 2048  # bounds prefill memory; a longer span stays whole


@dataclass(frozen=True)
class PlacedPrompt:
    """A prompt placed behind what a state has seen: its layout, with position ids counted on."""

    layout: PromptLayout
    next_position: int


def place_prompt(inputs: ModelInputs, manifest: Manifest, position: int = 0) -> PlacedPrompt:
    """Spans and rotary positions of a prompt that starts at rotary `position`."""
    ids = inputs.input_ids
    if len(ids) == 0:
        raise InputError("the prompt has no tokens", expected="a text, an image or a video")
    if bad := ids[(ids < 0) | (ids >= manifest.model.vocab_size)].tolist():
        raise InputError(
            "token ids outside the vocabulary", got=bad[:3], expected=f"0..{manifest.model.vocab_size - 1}"
        )
    if get_family(manifest.model.family).text_only:
        layout = PromptLayout(len(ids), (), np.arange(len(ids), dtype=np.int64)[None], len(ids))
    else:
        rules, frames = manifest.model.prompt_rules, manifest.model.mmate.max_span_frames
        layout = prompt_layout(rules, ids, inputs.media, frames)
    shifted = PromptLayout(layout.length, layout.spans, layout.position_ids + position, layout.next_position + position)
    return PlacedPrompt(shifted, shifted.next_position)


def prompt_pieces(
    inputs: ModelInputs,
    runner: Runner,
    manifest: Manifest,
    placed: PlacedPrompt,
    past_length: int = 0,
    max_tokens: int | None = None,
) -> Iterator[PromptPiece]:
    """The prefill calls of a prompt, cut only where a piece would have more than `max_tokens` tokens.

    max_tokens: default `piece_tokens`. Sessions and servers cut at linmu.runtimes.boundaries too (`pieces_at`).
    """
    cuts = pieces(placed.layout, max_tokens or piece_tokens(manifest))
    return pieces_at(cuts, inputs, runner, manifest, placed, past_length)


def pieces_at(
    cuts: Sequence[tuple[int, int]],
    inputs: ModelInputs,
    runner: Runner,
    manifest: Manifest,
    placed: PlacedPrompt,
    past_length: int = 0,
) -> Iterator[PromptPiece]:
    """The prefill calls of the consecutive pieces (start, stop) of a prompt, one after the other.

    What stands before the first of them was read already. Vision and embeddings run when a piece needs them.
    """
    layout, mmate = placed.layout, manifest.model.mmate
    text_only = get_family(manifest.model.family).text_only
    vision = VisionRows(inputs, runner, layout, cuts[0][0] if cuts else 0)
    depth, row = _deepstack_layers(manifest), window_row(manifest)
    for start, stop in cuts:
        embeds = runner.embed(inputs.input_ids[start:stop])
        deepstack = np.zeros((depth, 1, *embeds.shape), np.float32) if depth else None
        vision.fill(embeds, deepstack, start, stop)
        tensors = {} if text_only else layout_tensors(layout, mmate, start, stop, never_empty=True, row=row)
        positions = np.ascontiguousarray(layout.position_ids[:, start:stop])
        yield PromptPiece(embeds[None], positions, tensors, deepstack, past_length + start)


def piece_tokens(manifest: Manifest) -> int:
    """Tokens that a piece of a prompt has at most, unless a span is longer."""
    return int(manifest.program.get("piece_tokens", MAX_PIECE_TOKENS))


def most_piece_tokens(manifest: Manifest, runner: Runner, wanted: int | None = None) -> int:
    """The limit of a piece: `wanted` (default: `piece_tokens`), or fewer where the runner takes no more."""
    most, limit = wanted or piece_tokens(manifest), runner.max_piece_tokens
    return most if limit is None else min(most, limit)


def window_row(manifest: Manifest) -> int | None:
    """The length of packed window rows that a prefill graph was written for; None: any."""
    specs = (spec for spec in manifest.graphs["prefill"].inputs if spec.name == "layout.windows")
    length = next((spec.shape[-1] for spec in specs), None)
    return length if isinstance(length, int) else None


def _deepstack_layers(manifest: Manifest) -> int:
    for spec in manifest.graphs["prefill"].inputs:
        if spec.name == "deepstack":
            layers = spec.shape[0] if spec.shape else None
            if not isinstance(layers, int):
                raise BundleError("deepstack of the prefill graph", got=spec.shape, expected="a fixed number of layers")
            return layers
    return 0
