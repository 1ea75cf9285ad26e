"""The range of every symbolic dimension of a bundle's graphs, from its manifest alone: what compilers ask for.

An export records them ("profiles"), so that a device compiles for the very shapes that were checked; `linmu build
--max-tokens` computes them anew, by the same formulas.

Glossary
    N       tokens of one prefill call at most; longer prompts run in pieces
    gap     taps-1 zero elements between two spans of the backward sequence
    L       tokens of a row of packed Local-Swin windows: fixed, so that rows times L stays near N
Compilers plan memory for the largest value of every dimension at once: no bound is wider than it has to be.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from linmu.errors import BundleError, InputError
from linmu.formats.manifest import Manifest
from linmu.processing.defaults import VIDEO_DEFAULTS
from linmu.runtimes.base import TILES_AT_ONCE
from linmu.runtimes.prompt import MAX_PIECE_TOKENS, window_row
from linmu.specs import Dim, GraphSpec

LEAST_TEXT = 128  # golden vectors are one call: two tiles and at most this much text
FRAME_TEXT = 40  # tokens between two frames of a clip that are tiles: its time, and the tokens around a picture
USUAL_TOKENS, USUAL_PICTURE = 512, 256  # what kernels are chosen for: a picture and a question
LARGEST_FRAME = 1024  # tokens of a frame of any size; pictures may be larger where N leaves room
COMPILED = ("vision", "prefill", "step")  # by `linmu build`; embeddings are looked up on the host


@dataclass(frozen=True)
class Range:
    """Smallest, usual and largest value of one dimension."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 0 < self.min <= self.opt <= self.max:
            raise ValueError(f"{self.min} <= {self.opt} <= {self.max}")

    def holds(self, size: int) -> bool:
        """Whether `size` lies inside."""
        return self.min <= size <= self.max

    @property
    def fixed(self) -> bool:
        """Whether there is one value only."""
        return self.min == self.max


Ranges = dict[str, Range]  # by the dimension's name, of one graph
SIDES = ("min", "opt", "max")


def to_json(ranges: Ranges) -> dict[str, dict[str, int]]:
    """Plain JSON values."""
    return {name: asdict(item) for name, item in sorted(ranges.items())}


def from_json(data: Any) -> Ranges:
    """Read `to_json`'s form; raises ValueError, TypeError, KeyError or AttributeError on anything else."""
    return {str(name): Range(int(item["min"]), int(item["opt"]), int(item["max"])) for name, item in data.items()}


def largest_sizes(ranges: Ranges) -> dict[str, int]:
    """The largest size of every dimension."""
    return {name: item.max for name, item in ranges.items()}


def input_shapes(spec: GraphSpec, ranges: Ranges) -> dict[str, tuple[tuple[int, ...], ...]]:
    """(min, opt, max) shape of every input with a symbolic dimension."""
    shapes = {}
    for item in spec.inputs:
        if any(isinstance(dim, str) for dim in item.shape):
            shapes[item.name] = tuple(
                tuple(getattr(ranges[dim], side) if isinstance(dim, str) else dim for dim in item.shape)
                for side in SIDES
            )
    return shapes


def largest(shape: tuple[Dim, ...], ranges: Ranges) -> tuple[int, ...]:
    """A shape with every symbolic dimension at its largest."""
    return tuple(ranges[dim].max if isinstance(dim, str) else dim for dim in shape)


def window_rows(tokens: int, row: int) -> int:
    """The most rows of `row` tokens that windows of `tokens` tokens in all can take, packed in order.

    Two rows that follow each other hold more than `row` tokens, else the second one's first window would stand in
    the first; windows of 1 and `row` tokens in turn take as many as this.
    """
    pairs, rest = divmod(tokens, row + 1)
    return max(2 * pairs + (rest > 0), 1)


def smallest_span(manifest: Manifest) -> int:
    """Tokens of the smallest picture, tile or frame that the processor makes.

    A grid has one at least: a part of a message may set `min_pixels`, and Qwen3-VL's limits count a clip's frames
    together, so that one frame of many may be as small as a token.
    """
    return int(manifest.vision.get("tokens_per_tile") or 1)


def backward_places(tokens: int, piece: int, span: int, gap: int) -> int:
    """The most places of the backward sequence in a call of `tokens` tokens.

    A piece of a prompt has at most `piece` tokens, which may all be spans of `span` tokens; a longer call is one span
    that stays whole, or the two tiles of a golden vector.
    """
    most = min(tokens, piece)
    return max(most + gap * (most // span - 1), tokens + gap)


def longest_call(manifest: Manifest, piece: int = MAX_PIECE_TOKENS, step: int = LEAST_TEXT) -> int:
    """The default N: a piece of a prompt, two tiles with their text, or one span of a clip's frames, which stays whole.

    A multiple of `step`.
    """
    tile, frames = int(manifest.vision.get("tokens_per_tile") or 0), manifest.model.mmate.max_span_frames
    wanted = [piece, 2 * tile + LEAST_TEXT]
    if manifest.vision.get("kind") == "grid":
        wanted.append(frames * LARGEST_FRAME)
    elif manifest.vision and manifest.model.family in VIDEO_DEFAULTS:
        wanted.append(frames * (tile + FRAME_TEXT))
    return ceil(max(wanted) / step) * step


def graph_ranges(manifest: Manifest, tokens: int, piece: int = MAX_PIECE_TOKENS) -> dict[str, Ranges]:
    """The ranges of every graph where a prefill call has at most `tokens` tokens, and a piece of a prompt `piece`.

    Raises BundleError for a symbolic dimension that this version does not know.
    """
    return {
        name: _used(
            name, spec, _vision_ranges(manifest, tokens) if name == "vision" else _text_ranges(manifest, tokens, piece)
        )
        for name, spec in manifest.graphs.items()
    }


def profiles(
    manifest: Manifest, tokens: int | None = None, piece: int = MAX_PIECE_TOKENS
) -> dict[str, dict[str, dict[str, list[int]]]]:
    """{graph: {input: {"min": shape, "opt": shape, "max": shape}}} of every input with a symbolic dimension.

    tokens: of the longest prefill call (default: `longest_call`); piece: of a piece of a prompt.
    """
    ranges = graph_ranges(manifest, longest_call(manifest) if tokens is None else tokens, piece)
    shapes = {name: input_shapes(spec, ranges[name]) for name, spec in manifest.graphs.items()}
    return {
        name: {key: dict(zip(SIDES, map(list, sides), strict=True)) for key, sides in inputs.items()}
        for name, inputs in shapes.items()
        if inputs
    }


def recorded_ranges(manifest: Manifest, graph: str) -> Ranges:
    """The ranges that the manifest's profile of one graph tells, of its inputs' dimensions; none without a profile."""
    profile, ranges = manifest.profiles.get(graph, {}), {}
    for item in manifest.graphs[graph].inputs:
        shapes = profile.get(item.name)
        for axis, dim in enumerate(item.shape if shapes else ()):
            if isinstance(dim, str):
                ranges[dim] = Range(*(int(shapes[side][axis]) for side in SIDES))
    return ranges


def bundle_ranges(manifest: Manifest, max_tokens: int | None = None) -> dict[str, Ranges]:
    """The ranges of every graph that `linmu build` compiles, by graph and dimension.

    Without `max_tokens` those that the manifest records (its export compiled them); else N is `max_tokens`.
    Raises InputError when `max_tokens` is less than two tiles and LEAST_TEXT, BundleError for a symbolic dimension
    that this version does not know.
    """
    least = 2 * int(manifest.vision.get("tokens_per_tile") or 0) + LEAST_TEXT
    if max_tokens is not None and max_tokens < least:
        raise InputError("tokens of one prefill call", got=max_tokens, expected=f"at least {least} for this bundle")
    recorded = {
        name: recorded_ranges(manifest, name) if max_tokens is None else {}
        for name in COMPILED
        if name in manifest.graphs
    }
    longest = recorded.get("prefill", {}).get("tokens")
    tokens = max_tokens or (longest.max if longest else longest_call(manifest))
    ranges = graph_ranges(manifest, tokens)
    return {name: ranges[name] | exported for name, exported in recorded.items()}


def _text_ranges(manifest: Manifest, tokens: int, piece: int) -> Ranges:
    """Dimensions of token_embedding, prefill and step."""
    usual = min(USUAL_TOKENS, tokens)
    ranges = {"batch": Range(1, 1, 1), "tokens": Range(1, usual, tokens)}
    row = window_row(manifest) if "prefill" in manifest.graphs else None
    if not manifest.vision or row is None:
        return ranges
    backward = backward_places(tokens, piece, smallest_span(manifest), manifest.model.mmate.taps - 1)
    rows = window_rows(tokens, row)
    return ranges | {
        "backward": Range(1, usual, backward),
        "windows": Range(1, min(ceil(usual / row), rows), rows),
    }


def _vision_ranges(manifest: Manifest, tokens: int) -> Ranges:
    """Dimensions of one vision call: tiles, or the patches of one picture or frame of any size."""
    vision, ranges = manifest.vision, {"batch": Range(1, 1, 1), "tiles": Range(1, TILES_AT_ONCE, TILES_AT_ONCE)}
    if vision.get("kind") != "grid":
        return ranges
    # a call of N tokens is made for spans of so many frames: each has its share of N, a picture alone at least a frame
    most = min(tokens, max(LARGEST_FRAME, tokens // manifest.model.mmate.max_span_frames))
    usual, unit = min(USUAL_PICTURE, most), int(vision["merge"]) ** 2
    ranges |= {"merged": Range(1, usual, most), "patches": Range(unit, unit * usual, unit * most)}
    if window := int(vision.get("window") or 0):
        # no grid of so many tokens has more windows than a line of them (a window may be full on one side only)
        ranges["windows"] = Range(1, ceil(usual / window), ceil(most / window))
    return ranges


def _used(name: str, spec: GraphSpec, ranges: Ranges) -> Ranges:
    used = {dim for item in (*spec.inputs, *spec.outputs) for dim in item.shape if isinstance(dim, str)}
    if unknown := sorted(used - set(ranges)):
        raise BundleError(
            f"{spec.file}: dimension {unknown[0]!r} of graph {name} is not known",
            expected="one of " + ", ".join(sorted(ranges)),
            fix="install the linmu version that exported the bundle",
        )
    return {dim: item for dim, item in ranges.items() if dim in used}
