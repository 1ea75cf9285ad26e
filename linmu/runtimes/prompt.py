"""ModelInputs -> consecutive prefill pieces: embeddings with vision features put in, positions, layout tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from linmu.errors import BundleError, InputError
from linmu.families import get_family
from linmu.formats.manifest import Manifest
from linmu.layout import PromptLayout, layout_tensors, pieces, prompt_layout
from linmu.processing import ModelInputs
from linmu.runtimes.base import PromptPiece, Runner, VisionFeatures

MAX_PIECE_TOKENS = 2048  # bounds prefill memory; a longer span stays whole


@dataclass(frozen=True)
class PlacedPrompt:
    """A prompt placed behind what a state has seen: its layout, with position ids counted on."""

    layout: PromptLayout
    next_position: int


@dataclass(frozen=True)
class EncodedInputs(ModelInputs):
    """A prompt whose pictures were encoded before; features: of each call of the vision graph."""

    features: tuple[VisionFeatures, ...] = ()


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
    """The prefill calls of a prompt, one after the other; vision and embeddings run when a piece needs them.

    max_tokens: of a piece (default: `piece_tokens`).
    """
    layout, mmate = placed.layout, manifest.model.mmate
    text_only = get_family(manifest.model.family).text_only
    vision = _VisionRows(inputs, runner, manifest, layout)
    depth, row = _deepstack_layers(manifest), window_row(manifest)
    for start, stop in pieces(layout, max_tokens or piece_tokens(manifest)):
        embeds = runner.embed(inputs.input_ids[start:stop])
        deepstack = np.zeros((depth, 1, *embeds.shape), np.float32) if depth else None
        vision.fill(embeds, deepstack, start, stop)
        tensors = {} if text_only else layout_tensors(layout, mmate, start, stop, never_empty=True, row=row)
        positions = np.ascontiguousarray(layout.position_ids[:, start:stop])
        yield PromptPiece(embeds[None], positions, tensors, deepstack, past_length + start)


class _VisionRows:
    """Puts the rows of the vision graph into the embeddings, encoding one call at a time."""

    def __init__(self, inputs: ModelInputs, runner: Runner, manifest: Manifest, layout: PromptLayout):
        spans = [span.positions for span in layout.spans]
        self.places = np.sort(np.concatenate(spans)) if spans else np.zeros(0, np.int64)
        known = inputs.features if isinstance(inputs, EncodedInputs) else None
        self.features = map(runner.encode, inputs.vision_calls) if known is None else iter(known)
        self.rows: np.ndarray | None = None
        self.deep: np.ndarray | None = None

    def fill(self, embeds: np.ndarray, deepstack: np.ndarray | None, start: int, stop: int) -> None:
        """Replace the embeddings of the vision tokens among start..stop."""
        here = self.places[(self.places >= start) & (self.places < stop)] - start
        if not len(here):
            return
        rows, deep = self._take(len(here))
        if rows.shape[1:] != embeds.shape[1:]:
            raise BundleError(
                "the vision graph's embeddings",
                got=f"width {rows.shape[1:]}",
                expected=embeds.shape[1],
                fix="export the bundle again",
            )
        embeds[here] = rows
        if deepstack is not None and deep is not None:
            if deep.shape != (wanted := (len(deepstack), *rows.shape)):
                raise BundleError(
                    "the vision graph's deepstack", got=deep.shape, expected=wanted, fix="export the bundle again"
                )
            deepstack[:, 0, here] = deep

    def _take(self, count: int) -> tuple[np.ndarray, np.ndarray | None]:
        while self.rows is None or len(self.rows) < count:
            features = next(self.features, None)
            if features is None:
                got = 0 if self.rows is None else len(self.rows)
                raise InputError(
                    "the vision graph gave fewer rows than the prompt has vision tokens", got=got, expected=count
                )
            self.rows = _joined(self.rows, features.embeddings, 0)
            if features.deepstack is not None:
                self.deep = _joined(self.deep, features.deepstack, 1)
        rows, self.rows = self.rows[:count], self.rows[count:]
        if self.deep is None:
            return rows, None
        deep, self.deep = self.deep[:, :count], self.deep[:, count:]
        return rows, deep


def piece_tokens(manifest: Manifest) -> int:
    """Tokens that a piece of a prompt has at most, unless a span is longer."""
    return int(manifest.program.get("piece_tokens", MAX_PIECE_TOKENS))


def window_row(manifest: Manifest) -> int | None:
    """The length of packed window rows that a prefill graph was written for; None: any."""
    specs = (spec for spec in manifest.graphs["prefill"].inputs if spec.name == "layout.windows")
    length = next((spec.shape[-1] for spec in specs), None)
    return length if isinstance(length, int) else None


def _joined(old: np.ndarray | None, new: np.ndarray, axis: int) -> np.ndarray:
    return new if old is None else np.concatenate([old, new], axis)


def _deepstack_layers(manifest: Manifest) -> int:
    for spec in manifest.graphs["prefill"].inputs:
        if spec.name == "deepstack":
            layers = spec.shape[0] if spec.shape else None
            if not isinstance(layers, int):
                raise BundleError("deepstack of the prefill graph", got=spec.shape, expected="a fixed number of layers")
            return layers
    return 0
