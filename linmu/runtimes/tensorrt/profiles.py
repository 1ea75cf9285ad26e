"""Optimisation profiles: the range of every symbolic dimension of a bundle's graphs, from its manifest alone.

Glossary
    N       tokens of one prefill call at most (`max_tokens`); longer prompts run in pieces
    gap     taps-1 zero elements between two spans of the backward sequence
    L       tokens of a row of packed Local-Swin windows: fixed, so that rows times L stays near N (see fit.py)
TensorRT plans memory for the largest value of every dimension at once; every bound here can be reached.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isqrt
from typing import Any

from linmu.errors import BundleError, InputError
from linmu.formats.manifest import Manifest
from linmu.runtimes import prompt
from linmu.specs import Dim, GraphSpec

MAX_TOKENS = 2048  # the default N; linmu.runtimes.prompt cuts prompts at the same length
LEAST_TEXT = 128  # golden vectors are one call: two tiles and at most this much text
USUAL_TOKENS = 512  # what kernels are chosen for: a picture and a question
TILES_AT_ONCE = 4  # of one vision call
GRAPHS = ("vision", "prefill", "step")  # what is compiled; embeddings are looked up on the host


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


def bundle_ranges(manifest: Manifest, max_tokens: int | None = None) -> dict[str, Ranges]:
    """The ranges of every graph that is compiled, by graph and dimension.

    Without `max_tokens` those that the manifest records (its export compiled them); else N is `max_tokens`, or
    MAX_TOKENS, more where tiles need it.
    Raises InputError when `max_tokens` is less than two tiles and LEAST_TEXT, BundleError for a symbolic dimension
    that this version does not know.
    """
    least = 2 * int(manifest.vision.get("tokens_per_tile") or 0) + LEAST_TEXT
    recorded = manifest.profiles if max_tokens is None else {}
    max_tokens = max(MAX_TOKENS, least) if max_tokens is None else max_tokens
    if max_tokens < least:
        raise InputError("tokens of one prefill call", got=max_tokens, expected=f"at least {least} for this bundle")
    return {
        name: _checked(
            name,
            manifest.graphs[name],
            _graph_ranges(name, manifest, max_tokens) | _recorded(manifest.graphs[name], recorded.get(name, {})),
        )
        for name in GRAPHS
        if name in manifest.graphs
    }


def to_json(ranges: Ranges) -> dict[str, dict[str, int]]:
    """Plain JSON values."""
    return {name: asdict(item) for name, item in sorted(ranges.items())}


def from_json(data: Any) -> Ranges:
    """Read `to_json`'s form; raises ValueError, TypeError, KeyError or AttributeError on anything else."""
    return {str(name): Range(int(item["min"]), int(item["opt"]), int(item["max"])) for name, item in data.items()}


def input_shapes(spec: GraphSpec, ranges: Ranges) -> dict[str, tuple[tuple[int, ...], ...]]:
    """(min, opt, max) shape of every input with a symbolic dimension."""
    shapes = {}
    for item in spec.inputs:
        if any(isinstance(dim, str) for dim in item.shape):
            shapes[item.name] = tuple(
                tuple(getattr(ranges[dim], side) if isinstance(dim, str) else dim for dim in item.shape)
                for side in ("min", "opt", "max")
            )
    return shapes


def largest(shape: tuple[Dim, ...], ranges: Ranges) -> tuple[int, ...]:
    """A shape with every symbolic dimension at its largest."""
    return tuple(ranges[dim].max if isinstance(dim, str) else dim for dim in shape)


def window_row(manifest: Manifest) -> int:
    """L: the largest Local-Swin window of this model, in tokens."""
    mmate = manifest.model.mmate
    rows, columns = mmate.window_rows, mmate.window_columns
    if side := isqrt(int(manifest.vision.get("tokens_per_tile") or 0)):
        rows, columns = min(rows, side), min(columns, side)
    return min(mmate.window_frames, mmate.max_span_frames) * rows * columns


def window_rows(tokens: int, row: int) -> int:
    """The most rows of `row` tokens that windows of `tokens` tokens in all can take, packed in order.

    Two rows that follow each other hold more than `row` tokens, else the second one's first window would stand in
    the first.
    """
    return 2 * (tokens // (row + 1)) + 1


def smallest_span(manifest: Manifest) -> int:
    """Tokens of the smallest picture, tile or frame that the processor makes."""
    vision = manifest.vision
    if tokens := vision.get("tokens_per_tile"):
        return int(tokens)
    side = int(vision["patch"]) * int(vision["merge"])
    return max(int(vision.get("resize", {}).get("min_pixels", 0)) // side**2, 1)


def _graph_ranges(name: str, manifest: Manifest, max_tokens: int) -> Ranges:
    ranges = {"batch": Range(1, 1, 1)}
    if name == "step":
        return ranges
    vision = manifest.vision
    usual = min(USUAL_TOKENS, max_tokens)
    if name == "prefill":
        ranges["tokens"] = Range(1, usual, max_tokens)
        return ranges | (_layout_ranges(manifest, usual, max_tokens) if vision else {})
    if vision.get("kind") == "tiles":
        return ranges | {"tiles": Range(1, TILES_AT_ONCE, TILES_AT_ONCE)}
    unit = int(vision["merge"]) ** 2
    ranges["merged"] = Range(1, usual, max_tokens)
    ranges["patches"] = Range(unit, unit * usual, unit * max_tokens)
    if vision.get("window"):
        usual_windows, most_windows = (_grid_windows(size, int(vision["window"])) for size in (usual, max_tokens))
        ranges["windows"] = Range(1, usual_windows, most_windows)
    return ranges


def _recorded(spec: GraphSpec, profile: dict[str, Any]) -> Ranges:
    """The ranges of dimensions that a manifest's profile of one graph tells."""
    found = {}
    for item in spec.inputs:
        shapes = profile.get(item.name, {})
        for axis, dim in enumerate(item.shape if shapes else ()):
            if isinstance(dim, str):
                found[dim] = Range(*(int(shapes[side][axis]) for side in ("min", "opt", "max")))
    return found


def _layout_ranges(manifest: Manifest, usual: int, max_tokens: int) -> Ranges:
    gap, row = manifest.model.mmate.taps - 1, prompt.window_row(manifest) or window_row(manifest)
    spans = max_tokens // min(smallest_span(manifest), max_tokens)
    rows = window_rows(max_tokens, row)
    return {
        "backward": Range(1, usual, max_tokens + gap * (spans - 1)),
        "windows": Range(1, min(-(-usual // row), rows), rows),
        "window_tokens": Range(row, row, row),
    }


def _grid_windows(tokens: int, window: int) -> int:
    """The most windows of `window` x `window` that a grid of at most `tokens` tokens is cut into."""
    return max(-(-rows // window) * -(-(tokens // rows) // window) for rows in range(1, tokens + 1))


def _checked(name: str, spec: GraphSpec, ranges: Ranges) -> Ranges:
    used = {dim for item in (*spec.inputs, *spec.outputs) for dim in item.shape if isinstance(dim, str)}
    if unknown := sorted(used - set(ranges)):
        raise BundleError(
            f"{spec.file}: dimension {unknown[0]!r} of graph {name} is not known",
            expected="one of " + ", ".join(sorted(ranges)),
            fix="install the linmu version that exported the bundle",
        )
    return {dim: item for dim, item in ranges.items() if dim in used}
