"""decoder.json of a bundle: where every decoder weight lies in the data file, and the decoder's sizes (no torch).

It lets a runner map the weights once and hand them to all graphs, and lets torch run the very same weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from linmu.config import MMateConfig
from linmu.errors import BundleError, InputError
from linmu.files.regular import inside, regular_file
from linmu.files.strict_json import read_json
from linmu.formats.manifest import Manifest
from linmu.formats.matrix_format import MatrixFormat, part
from linmu.formats.packing import PACKINGS, block_rows, unpack

DECODER_FILE = "decoder.json"
TABLE = "token_embedding"
DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
MOST_AXES = 8
FORM_TYPES: dict[str, tuple[type, ...]] = {  # what readers without torch compare and use
    "family": (str,),
    "mmate": (dict,),
    **dict.fromkeys(("layers", "hidden", "heads", "kv_heads"), (int,)),
    **dict.fromkeys(("head_dim", "vocab", "deepstack", "rope_axes"), (int,)),
    "tied": (bool,),
    "state": (str,),
    **dict.fromkeys(("eps", "qk_norm_eps", "rope_scale"), (int, float)),
    "quantized": (dict,),
}


@dataclass(frozen=True)
class WeightEntry:
    """One weight of the data file: numpy dtype name, shape, byte offset."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class DecoderFile:
    """Data file name, weights by name, and the scalar fields of the step form (linmu.step.form.DecoderForm).

    packing: of the integers of every quantized matrix, by its name (linmu.formats.packing).
    """

    data: str
    weights: dict[str, WeightEntry]
    form: dict[str, Any]
    packing: dict[str, str] = field(default_factory=dict)

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """Byte offset and length of every weight in the data file."""
        ranges = {}
        for name, entry in self.weights.items():
            ranges[name] = entry.offset, prod(entry.shape) * np.dtype(entry.dtype).itemsize
        return ranges

    def format(self, matrix: str) -> MatrixFormat | None:
        """How a matrix is quantized, or None."""
        plain = self.form.get("quantized", {}).get(matrix)
        return None if plain is None else MatrixFormat.from_json(plain)


def write_decoder_file(folder: Path, decoder: DecoderFile) -> None:
    """Write decoder.json into a bundle that is being made."""
    weights = {name: [entry.dtype, list(entry.shape), entry.offset] for name, entry in decoder.weights.items()}
    document = {"data": decoder.data, "form": decoder.form, "weights": weights, "packing": decoder.packing}
    (folder / DECODER_FILE).write_text(json.dumps(document, indent=1) + "\n")


def read_decoder_file(folder: Path) -> DecoderFile:
    """Read decoder.json; raises BundleError when it is missing or malformed."""
    path = folder / DECODER_FILE
    document = read_json(path, DECODER_FILE, BundleError)
    try:
        return _decoder(document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} cannot be read", got=error, fix="export the bundle again") from error


def _decoder(document: Any) -> DecoderFile:
    if unknown := set(document) - {"data", "form", "weights", "packing"}:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
    data, form = document["data"], document["form"]
    weights = {name: _entry(name, entry) for name, entry in document["weights"].items()}
    file = DecoderFile(data, weights, form, document.get("packing", {}))
    if not isinstance(data, str) or not isinstance(form, dict):
        raise ValueError("data must be a name and form an object")
    for name, kinds in FORM_TYPES.items():
        if type(form[name]) not in kinds:
            raise ValueError(f"form.{name} {form[name]!r:.60}")
    if set(file.packing) != set(form["quantized"]):
        raise ValueError("packing and form.quantized are of different matrices")
    for name, packing in file.packing.items():
        file.format(name)
        if packing not in PACKINGS or part(name, "q") not in weights or part(name, "scale") not in weights:
            raise ValueError(f"packing {packing!r} of {name}")
    return file


def _entry(name: str, entry: Any) -> WeightEntry:
    dtype, shape, offset = entry
    if dtype not in DTYPES or not all(type(n) is int and n >= 0 for n in (*shape, offset)) or len(shape) > MOST_AXES:
        raise ValueError(f"weight {name!r}: {entry!r:.80}")
    return WeightEntry(dtype, tuple(shape), offset)


def map_weights(folder: Path, decoder: DecoderFile) -> dict[str, np.ndarray]:
    """Every weight as a read-only view of the mapped data file: no copy; pages are loaded when used.

    Raises BundleError when the data file is not a file of `folder`, and when a weight lies outside it.
    """
    try:
        path = regular_file(inside(folder, decoder.data, f"data of {DECODER_FILE}"), f"data of {DECODER_FILE}")
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
    except InputError as error:
        raise BundleError(error.what, got=error.got, expected=error.expected, fix="export the bundle again") from error
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise BundleError(f"cannot map {folder / decoder.data}", got=error, fix="copy the bundle again") from error
    views = {}
    for name, entry in decoder.weights.items():
        size = np.dtype(entry.dtype).itemsize
        length = prod(entry.shape) * size
        if entry.offset + length > mapped.size or entry.offset % size:
            raise BundleError(
                f"{path} does not hold {name}",
                got=f"{mapped.size} bytes",
                expected=f"{length} bytes at a multiple of {size}, got {entry.offset}",
                fix="copy the bundle again",
            )
        views[name] = mapped[entry.offset : entry.offset + length].view(entry.dtype).reshape(entry.shape)
    return views


def open_decoder(folder: Path, manifest: Manifest) -> tuple[DecoderFile, dict[str, np.ndarray]]:
    """decoder.json and its mapped weights, both held against the manifest; raises BundleError where they differ."""
    decoder = read_decoder_file(folder)
    model, form = manifest.model, decoder.form
    if decoder.data not in manifest.files:
        raise _differs("data", decoder.data, "a file that the manifest lists")
    for name, wanted in (
        ("family", model.family),
        ("mmate", model.mmate.to_json()),
        ("layers", model.layers),
        ("hidden", model.hidden_size),
        ("heads", model.heads),
        ("kv_heads", model.kv_heads),
        ("head_dim", model.head_dim),
        ("vocab", model.vocab_size),
    ):
        said = MMateConfig().to_json() | form[name] if name == "mmate" else form[name]  # settings newer than the file
        if said != wanted:
            raise _differs(f"form.{name}", form[name], wanted)
    weights = map_weights(folder, decoder)
    format = decoder.format(TABLE)
    name = TABLE if format is None else part(TABLE, "q")
    shape = None if name not in weights else weights[name].shape
    rows: tuple[int, ...] = (model.vocab_size, model.hidden_size)
    if format is not None and format.group:
        rows = (model.vocab_size, model.hidden_size // format.group, format.group * format.bits // 8)
        scales = weights[part(TABLE, "scale")]
        if decoder.packing[TABLE] != "blocks" or scales.shape != rows[:2] or scales.dtype.kind != "f":
            raise _differs(f"scales of {TABLE}", scales.shape, rows[:2])
    if shape != rows:
        raise _differs(name, shape, rows)
    return decoder, weights


def _differs(what: str, got: object, expected: object) -> BundleError:
    return BundleError(f"{DECODER_FILE}: {what}", got=got, expected=expected, fix="export the bundle again")


def embedding_rows(views: dict[str, np.ndarray], decoder: DecoderFile, ids: np.ndarray) -> np.ndarray:
    """Rows `ids` [S] of the token embeddings, [S, D] float32, whatever they are stored as."""
    format = decoder.format(TABLE)
    if format is None:
        return np.asarray(views[TABLE][ids], np.float32)
    return block_rows(views[part(TABLE, "q")], views[part(TABLE, "scale")], format, np.asarray(ids))


def plain_parts(views: dict[str, np.ndarray], decoder: DecoderFile) -> dict[str, np.ndarray]:
    """Every weight as the step form has it: packed integers and scales unpacked (copies), the rest as in `views`."""
    weights = dict(views)
    for name, packing in decoder.packing.items():
        format = decoder.format(name)
        assert format is not None  # read_decoder_file has looked
        scale, packed = views[part(name, "scale")], views[part(name, "q")]
        if packing == "blocks":
            scale = np.ascontiguousarray(scale.T)
            shape = (scale.shape[0] * format.group, scale.shape[1])
        elif packing == "nibbles":
            shape = (scale.shape[0] * format.group, scale.shape[1])
        else:
            shape = (packed.shape[0], packed.shape[1])
        weights[part(name, "q")], weights[part(name, "scale")] = unpack(packed, format, packing, shape), scale
    return weights
