"""What a manifest says of the model, held against itself: a stranger's numbers reach no allocation unchecked.

No size in a manifest may ask for more than `room`: what its weight files hold, and a floor that small models stay
under. Which files exist and what they hash to is checked elsewhere (linmu.formats.bundle).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from linmu.families import get_family
from linmu.formats.manifest import DTYPE_BYTES, WEIGHT_SUFFIXES, Manifest
from linmu.formats.manifest_object import read_as_manifest, refused
from linmu.specs import TensorSpec

LEAST_ROOM = 256 << 20  # bytes that a tensor or a state may have whatever the weights are
MOST_LAYERS, MOST_SIDE, MOST_TOKENS = 4096, 16384, 1 << 30  # side: of a picture, in pixels

_COUNTS = ("hidden_size", "layers", "heads", "kv_heads", "head_dim", "vocab_size")


def room(manifest: Manifest) -> int:
    """Bytes that one tensor or the state of one sequence may take."""
    weights = sum(entry.bytes for name, entry in manifest.files.items() if name.endswith(WEIGHT_SUFFIXES))
    return max(LEAST_ROOM, weights)


def check_facts(manifest: Manifest) -> None:
    """Raise BundleError for numbers of a manifest that no exporter writes."""
    _check_model(manifest)
    most = room(manifest)
    if manifest.state_bytes > most:
        raise refused("state_bytes", manifest.state_bytes, f"at most {most} for weights of this size")
    for name, graph in manifest.graphs.items():
        for spec in (*graph.inputs, *graph.outputs):
            _check_tensor(f"graphs.{name}", spec, most)
    _check_vision(manifest.vision, most)
    generation = manifest.generation
    _optional(generation, "generation", "max_new_tokens", _within(1, MOST_TOKENS))
    _optional(generation, "generation", "max_position_embeddings", _within(1, MOST_TOKENS))
    ids = _within(0, MOST_TOKENS)
    _optional(generation, "generation", "eos_token_ids", lambda value: isinstance(value, list) and all(map(ids, value)))
    _optional(manifest.program, "program", "piece_tokens", _within(1, MOST_TOKENS))


def _check_model(manifest: Manifest) -> None:
    model = manifest.model
    for name in _COUNTS:
        if not 1 <= getattr(model, name) < MOST_TOKENS:
            raise refused(f"model.{name}", getattr(model, name), "a count of at least 1")
    if model.layers > MOST_LAYERS or model.heads % model.kv_heads:
        raise refused(
            "model",
            f"{model.layers} layers, {model.heads} heads, {model.kv_heads} kv_heads",
            f"at most {MOST_LAYERS} layers, heads a multiple of kv_heads",
        )
    with read_as_manifest():
        family = get_family(model.family)
        if family.vision == "tiles":
            _ = model.prompt_rules.tile
    if model.prompt_rules.family != family.name:
        raise refused("family of model.prompt_rules", model.prompt_rules.family, family.name)
    if bool(manifest.vision) != (family.vision != "none"):
        raise refused("vision", sorted(manifest.vision), f"facts exactly where the family has a tower ({family.name})")
    if manifest.vision and (manifest.vision.get("kind"), manifest.vision.get("family")) != (family.vision, family.name):
        raise refused("vision", manifest.vision.get("kind"), f"{family.vision} of {family.name}")


def _check_tensor(where: str, spec: TensorSpec, most: int) -> None:
    """Sizes that are fixed must fit; named ones count as 1."""
    size = prod(dim for dim in spec.shape if isinstance(dim, int)) * DTYPE_BYTES[spec.dtype]
    if len(spec.shape) > 8 or size > most:
        raise refused(f"{where}: {spec.name}", list(spec.shape), f"at most {most} bytes in 8 dimensions")


def _check_vision(vision: dict[str, Any], most: int) -> None:
    """The facts that linmu.layout.vision_grid and the golden vectors read."""
    if not vision:
        return
    names = ["patch", "merge", "channels", "hidden_size"]
    names.append("tokens_per_tile" if vision["kind"] == "tiles" else "temporal_patch")
    for name in names:
        if not _within(1, MOST_SIDE * 16)(vision.get(name)):
            raise refused(f"vision.{name}", repr(vision.get(name)), "a count")
    for name in ("window", "table_side"):
        _optional(vision, "vision", name, _within(1, MOST_SIDE))
    if vision["kind"] == "grid":
        if not {"window", "table_side"} <= vision.keys():
            raise refused("vision", sorted(vision), "window and table_side, or null")
        pixels = vision["temporal_patch"] * vision["patch"] ** 2
    else:
        sides = vision.get("tile_size")
        if not isinstance(sides, list) or len(sides) != 2 or not all(map(_within(1, MOST_SIDE), sides)):
            raise refused("vision.tile_size", repr(sides), "height and width in pixels")
        pixels = prod(sides)
    if pixels * vision["channels"] * DTYPE_BYTES["float32"] > most:
        raise refused("vision", f"{pixels} pixels of {vision['channels']} channels", f"at most {most} bytes")


def _optional(data: dict[str, Any], where: str, name: str, fits: Callable[[Any], bool]) -> None:
    """A value that may be absent or null."""
    if data.get(name) is not None and not fits(data[name]):
        raise refused(f"{where}.{name}", f"{data[name]!r:.60}", "another value")


def _within(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high
